-- What the store knows of itself: the key ring that encrypts it, how far re-encryption is, what was pruned. The keys are
-- those of the embedded store: see persistence/rocksdb_keys.py.
CREATE TABLE meta (
    key   bytea PRIMARY KEY,
    value bytea NOT NULL
);
