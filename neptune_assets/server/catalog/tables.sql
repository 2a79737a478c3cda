-- Runs of all projects. Names and attributes refer to them by number; numbers are never used again.
CREATE TABLE runs (
    run      INTEGER NOT NULL,
    project  VARCHAR NOT NULL,
    scope    VARCHAR NOT NULL,   -- runs, models, model_versions or project
    run_id   VARCHAR NOT NULL,
    sys_id   VARCHAR NOT NULL,
    created  BIGINT,             -- milliseconds since 1970
    trashed  BOOLEAN NOT NULL,
    head     BOOLEAN NOT NULL    -- the youngest run of its experiment
);

-- Every pair of path and type that some run has.
CREATE SEQUENCE name_numbers;
CREATE TABLE names (
    name INTEGER NOT NULL,
    path VARCHAR NOT NULL,
    type VARCHAR NOT NULL        -- as in neptune_assets.schema.AttributeType
);

-- One row for each attribute of a run, those that a fork inherits included.
CREATE TABLE attributes (
    run        INTEGER NOT NULL,
    name       INTEGER NOT NULL,
    number     DOUBLE,           -- float; last value of a float series
    whole      BIGINT,           -- int
    text       VARCHAR,          -- string; last value of a string series
    flag       BOOLEAN,          -- bool
    moment     BIGINT,           -- datetime, milliseconds since 1970
    members    VARCHAR[],        -- string set
    least      DOUBLE,           -- float series, finite values only
    greatest   DOUBLE,
    mean       DOUBLE,
    variance   DOUBLE,           -- of the population
    points     BIGINT,
    first_step BIGINT,           -- micro-steps
    last_step  BIGINT,
    detail     VARCHAR,          -- JSON of a file, of the last histogram, of the last file of a series
    previewed  BOOLEAN,          -- the series has points that are not final
    pending    UTINYINT NOT NULL,-- what is still to be read from the points, see pending.py
    inherited  BOOLEAN NOT NULL  -- the run has no points of its own there
);

-- Which names the runs of a project have, gathered when somebody asks after a change.
CREATE TABLE definitions (
    project VARCHAR NOT NULL,
    scope   VARCHAR NOT NULL,
    name    INTEGER NOT NULL
);
