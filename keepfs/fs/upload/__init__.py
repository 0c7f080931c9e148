"""upload/: staging of written files, their storing, the catalog, retry and spilling."""
