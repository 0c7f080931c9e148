"""HTTP/1.1 for Keep: connections, requests, answers, and limits on their time."""
