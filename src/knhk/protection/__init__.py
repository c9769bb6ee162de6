"""Protection of stored data over time: re-encryption, rotation of keys, erasure, retention and the archive."""
