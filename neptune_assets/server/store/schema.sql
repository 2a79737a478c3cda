-- One SQLite database for each project: everything that clients logged, durable when the request is answered.
--
-- Steps are whole micro-steps (10^-6), times whole milliseconds since 1970 in UTC. Floats are kept as their 64 bits in
-- an INTEGER: SQLite itself would turn NaN into NULL and -0.0 into 0.
--
-- Rows carry checksums (see checksums.py), and counts of what belongs to them: SQLite does not notice changed values.
-- Both are NULL where an older version wrote the row, which is then not checked.

CREATE TABLE project (
    project_id  TEXT    NOT NULL,              -- workspace/name
    uuid        TEXT    NOT NULL,
    key         TEXT    NOT NULL,              -- what sys/id begins with
    created_at  INTEGER NOT NULL,
    revision    INTEGER NOT NULL DEFAULT 0,    -- grows with every commit; runs carry the value of their last change
    format      INTEGER NOT NULL DEFAULT 2,
    last_number INTEGER NOT NULL DEFAULT 0,    -- last number that a sys/id was given
    runs        INTEGER DEFAULT 0,             -- how many rows the table below has
    checksum    INTEGER
);

CREATE TABLE runs (
    id              INTEGER PRIMARY KEY,
    scope           TEXT    NOT NULL DEFAULT 'runs',   -- runs, models, model_versions, or project (its own metadata)
    run_id          TEXT    NOT NULL,                  -- sys/custom_run_id; sys/id where a client gave none
    sys_id          TEXT    NOT NULL,
    uuid            TEXT    NOT NULL UNIQUE,           -- how 2.x clients name it
    experiment      TEXT,                              -- sys/name of 3.x
    parent_project  TEXT,
    parent_run_id   TEXT,
    fork_step       INTEGER,
    requested_parent TEXT,
    inherit_configs INTEGER NOT NULL DEFAULT 1,
    generation      TEXT    NOT NULL DEFAULT '3',      -- protocol that made it: 2 or 3
    created_at      INTEGER NOT NULL,
    modified_at     INTEGER NOT NULL,
    ping_at         INTEGER,
    trashed         INTEGER NOT NULL DEFAULT 0,
    archived        INTEGER NOT NULL DEFAULT 0,
    adopted         TEXT,                              -- digest of the lake's run that this one continues
    revision        INTEGER NOT NULL,
    attributes      INTEGER,                           -- how many rows it has in the table below
    checksum        INTEGER,
    UNIQUE (scope, run_id),
    UNIQUE (scope, sys_id)
);
CREATE INDEX runs_by_revision ON runs (revision);
CREATE INDEX runs_by_parent ON runs (parent_run_id);

-- One row for each attribute of a run. A single value is in `value`; a series has its points in the tables below.
CREATE TABLE attributes (
    id        INTEGER PRIMARY KEY,
    run       INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    path      TEXT    NOT NULL,
    type      TEXT    NOT NULL,                -- as in neptune_assets.schema.AttributeType
    value     BLOB,                            -- INTEGER (int, bool 0/1, datetime ms, float bits), TEXT (string), JSON text (string_set, file, file_set, artifact)
    last_step INTEGER,                         -- of the last committed point
    revision  INTEGER NOT NULL,
    points    INTEGER,                         -- how many points or objects it has
    checksum  INTEGER,
    UNIQUE (run, path)
);

CREATE TABLE points (                          -- float_series
    attribute INTEGER NOT NULL REFERENCES attributes (id) ON DELETE CASCADE,
    step      INTEGER NOT NULL,
    time      INTEGER NOT NULL,
    bits      INTEGER NOT NULL,
    checksum  INTEGER,
    PRIMARY KEY (attribute, step)
) WITHOUT ROWID;

CREATE TABLE previews (                        -- float_series points that are not final yet
    attribute  INTEGER NOT NULL REFERENCES attributes (id) ON DELETE CASCADE,
    step       INTEGER NOT NULL,
    time       INTEGER NOT NULL,
    bits       INTEGER NOT NULL,
    completion INTEGER NOT NULL,               -- bits of the completion ratio
    PRIMARY KEY (attribute, step)
) WITHOUT ROWID;

CREATE TABLE objects (                         -- string_series, histogram_series, file_series
    attribute INTEGER NOT NULL REFERENCES attributes (id) ON DELETE CASCADE,
    step      INTEGER NOT NULL,
    time      INTEGER NOT NULL,
    value     TEXT    NOT NULL,                -- the string itself, or JSON of the histogram or file
    checksum  INTEGER,
    PRIMARY KEY (attribute, step)
) WITHOUT ROWID;

-- Bytes that arrived, by the key that clients chose (`file.path`); the last upload to a key wins.
CREATE TABLE files (
    key         TEXT    PRIMARY KEY,
    sha256      TEXT    NOT NULL,              -- also the name of the stored object
    size        INTEGER NOT NULL,
    mime_type   TEXT,
    uploaded_at INTEGER NOT NULL,
    checksum    INTEGER
);

-- What is in a file set of 2.x; the attribute's value is JSON of {size, files}.
CREATE TABLE file_set_files (
    attribute   INTEGER NOT NULL REFERENCES attributes (id) ON DELETE CASCADE,
    path        TEXT    NOT NULL,              -- relative, no . nor ..
    sha256      TEXT,                          -- of the stored object; NULL for a directory
    size        INTEGER NOT NULL,
    modified_at INTEGER NOT NULL,
    checksum    INTEGER,
    PRIMARY KEY (attribute, path)
) WITHOUT ROWID;

-- Artifacts of 2.x: lists of files that lie elsewhere. An attribute's value is JSON of {hash}.
-- `files` is a JSON list of {filePath, fileHash, type, size, metadata}, NULL until it was received.
CREATE TABLE artifacts (
    hash     TEXT PRIMARY KEY,
    size     INTEGER,                          -- of all files, if known
    files    TEXT,
    checksum INTEGER
) WITHOUT ROWID;

-- Requests of 2.x clients that left the numbering of steps to the server: sent again, they must not count twice.
CREATE TABLE requests (
    run    INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    digest TEXT    NOT NULL,                   -- SHA-256 of the body
    at     INTEGER NOT NULL,
    answer TEXT    NOT NULL,                   -- JSON
    PRIMARY KEY (run, digest)
) WITHOUT ROWID;
