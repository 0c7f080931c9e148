"""Collections: manifests as values, and requests to the API server; no event loop.

A manifest is the text that lists the files of a collection and where their bytes are.
`parsing` reads a text, `builder` makes a manifest from files, `manifest` is the value that both
return. `portable` computes the hash that names a collection by its content.
`remote_collections` creates, finds and changes collections at the API server,
`local_collections` those of a local store.
"""
