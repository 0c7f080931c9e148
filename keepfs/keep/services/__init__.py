"""The Keep services of a cluster: found, asked in probe order, hedged, written to."""
