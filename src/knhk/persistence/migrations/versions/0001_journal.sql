-- The journal of receipts. A row's bytes are those of the embedded store: see persistence/rows.py and codec.py.

-- One row per partition: its owner's epoch, which fences every append, and the newest block, on which the next one builds.
CREATE TABLE partitions (
    partition  integer PRIMARY KEY,
    epoch      bigint  NOT NULL,
    height     bigint  NOT NULL,
    block_hash bytea   NOT NULL
);

CREATE TABLE blocks (
    partition integer NOT NULL,
    height    bigint  NOT NULL,
    signed    bytea   NOT NULL,
    PRIMARY KEY (partition, height)
);

-- What one commit added to one run: receipts from first_seq on, and the payloads beside them.
CREATE TABLE receipts (
    partition   integer NOT NULL,
    workflow_id bigint  NOT NULL,
    first_seq   integer NOT NULL,
    slice       bytea   NOT NULL,
    PRIMARY KEY (partition, workflow_id, first_seq)
);

CREATE TABLE payloads (
    partition   integer NOT NULL,
    workflow_id bigint  NOT NULL,
    first_seq   integer NOT NULL,
    payloads    bytea   NOT NULL,
    PRIMARY KEY (partition, workflow_id, first_seq)
);

CREATE TABLE descriptors (
    digest bytea PRIMARY KEY,
    text   bytea NOT NULL
);

CREATE TABLE claims (
    key_digest     bytea  PRIMARY KEY,
    workflow_id    bigint NOT NULL,
    request_digest bytea  NOT NULL
);

-- The runs that a restart must load at once.
CREATE TABLE live (
    partition   integer NOT NULL,
    workflow_id bigint  NOT NULL,
    PRIMARY KEY (partition, workflow_id)
);

CREATE TABLE timers (
    partition   integer NOT NULL,
    at_ns       bigint  NOT NULL,
    workflow_id bigint  NOT NULL,
    PRIMARY KEY (partition, at_ns, workflow_id)
);

CREATE TABLE signing_keys (
    key_id        text   PRIMARY KEY,
    raw           bytea  NOT NULL,
    created_at_ns bigint NOT NULL,
    retired_at_ns bigint NOT NULL
);

-- Projections: rows of folds, and the height up to which each is folded.
CREATE TABLE projections (
    fold  text  NOT NULL,
    key   bytea NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (fold, key)
);

CREATE TABLE cursors (
    fold   text   PRIMARY KEY,
    height bigint NOT NULL
);
