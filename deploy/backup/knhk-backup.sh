#!/bin/bash
# Backs up a running KNHK server: a checkpoint, copied to a directory and to S3; keeps 30 days. For cron, as in
#
#   0 */6 * * * /usr/local/bin/knhk-backup.sh
#
# What is copied is the checkpoint, not the data directory: files that a server is writing to cannot be copied whole.
# Exit code 0 means that a complete backup is where it belongs. `knhk recover --snapshot` restores one;
# `knhk backup` does the same as this script in one tool. Needs bash, curl, rsync, flock, and aws for S3.
set -euo pipefail

OPERATIONS=${KNHK_OPERATIONS:-http://localhost:9090} # the server's operations port
BACKUPS=${KNHK_BACKUPS:-/backup/knhk}                # where backups are kept
S3=${KNHK_BACKUPS_S3-s3://knhk-backups}              # and where copies of them go; empty: nowhere
KEEP_DAYS=${KNHK_BACKUP_KEEP_DAYS:-30}

fail() {
    echo "knhk-backup: $1" >&2
    exit 1
}

TIMESTAMP=$(date +%Y%m%d_%H%M%S)
BACKUP_DIR="$BACKUPS/$TIMESTAMP"
UNFINISHED="$BACKUPS/.$TIMESTAMP.partial"
mkdir -p "$BACKUPS"

# One at a time; a backup that was interrupted is not kept.
exec 9>"$BACKUPS/.lock"
flock -n 9 || fail "another backup is under way"
rm -rf "$BACKUPS"/.*.partial
trap 'rm -rf "$UNFINISHED"' EXIT

# Create checkpoint
ANSWER=$(curl --fail-with-body --silent --show-error --max-time 600 -X POST "$OPERATIONS/checkpoint") ||
    fail "no checkpoint: $ANSWER"
CHECKPOINT=$(sed -n 's/^[^[]*"path" *: *"\([^"]*\)".*/\1/p' <<<"$ANSWER")
[ -f "$CHECKPOINT/snapshot.json" ] || fail "the checkpoint '$CHECKPOINT' is not on this machine, or not complete"

# Backup the checkpoint; the server does not remove it while the lock is held
mkdir -p "$UNFINISHED/data"
flock -s "$CHECKPOINT" rsync -a --fsync "$CHECKPOINT/" "$UNFINISHED/data/" || fail "the copy is not complete"
mv "$UNFINISHED" "$BACKUP_DIR"

# Backup to S3, to a place of its own and as the latest
if [ -n "$S3" ]; then
    aws s3 sync --only-show-errors "$BACKUP_DIR" "$S3/$TIMESTAMP/" || fail "$S3/$TIMESTAMP is not complete"
    aws s3 sync --only-show-errors --delete "$BACKUP_DIR" "$S3/latest/" ||
        fail "$S3/latest is not complete"
fi

# Retain last 30 days
find "$BACKUPS" -mindepth 1 -maxdepth 1 -type d -name '[0-9]*_[0-9]*' -mtime +"$KEEP_DAYS" -exec rm -rf {} +

echo "$BACKUP_DIR"
