"""A plan made files: split models, manifest, proof."""
