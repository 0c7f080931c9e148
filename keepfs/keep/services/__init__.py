"""The Keep services of a cluster: discovery, reads in probe order, hedging, writes."""
