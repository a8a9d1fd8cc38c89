#!/bin/sh
# Creates or upgrades the databases of Temporal. Runs in temporalio/admin-tools, which brings schema and tool.
set -eu
SQL_PASSWORD="$(cat /run/secrets/temporal_db_password)"
export SQL_PASSWORD
versioned=/etc/temporal/schema/postgresql/v12

sql() {
  database="$1"
  shift
  temporal-sql-tool --plugin postgres12 --ep "$POSTGRES_HOST" -p 5432 -u "$POSTGRES_USER" --db "$database" "$@"
}

for pair in temporal:temporal temporal_visibility:visibility; do
  database="${pair%%:*}"
  kind="${pair##*:}"
  # Creating what is there fails on some versions and is harmless on others: what counts is the upgrade after it.
  sql "$database" create || echo "database $database is there"
  sql "$database" setup-schema -v 0.0 || echo "schema of $database is there"
  sql "$database" update-schema -d "$versioned/$kind/versioned"
done
