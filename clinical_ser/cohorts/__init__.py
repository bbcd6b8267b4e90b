"""Who was recorded, what is known of them, and how they are kept apart: manifests, corpora, splits."""
