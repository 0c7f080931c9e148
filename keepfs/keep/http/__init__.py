"""HTTP/1.1 as Keep needs it: connections, requests, answers, and limits on their time."""
