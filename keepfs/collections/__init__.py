"""Collections: manifests as values, and requests to the API server; no event loop.

A manifest is the text that says which files a collection has and where their bytes are.
`parsing` reads a text, `builder` makes a manifest from files, `manifest` is the value that both
return, `portable` computes the hash that names a collection by its content. `remote` creates,
finds and changes collections at the API server.
"""
