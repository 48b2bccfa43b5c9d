#!/bin/sh
# Run by the image of PostgreSQL when it makes the database: the users of the sink, which makes the
# tables, and of the queries, which only read them (docs/security.md).
set -eu

psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set sink="$(cat "${SECRETS:-/run/secrets}/postgres-bss_sink")" \
    --set queries="$(cat "${SECRETS:-/run/secrets}/postgres-bss_queries")" <<'SQL'
CREATE USER bss_sink PASSWORD :'sink';
CREATE USER bss_queries PASSWORD :'queries';
GRANT CREATE ON SCHEMA public TO bss_sink;
ALTER DEFAULT PRIVILEGES FOR ROLE bss_sink GRANT SELECT ON TABLES TO bss_queries;
SQL
