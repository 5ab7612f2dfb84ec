-- What a next version may do: programs of version 1 go on with it.
ALTER TABLE feed.feeds ADD COLUMN note text NOT NULL DEFAULT '';
UPDATE feed.compatibility SET version = 2, oldest = 1;
