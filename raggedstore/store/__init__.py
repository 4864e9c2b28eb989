"""The store: a folder of segments and manifests, and all that is done to it."""
