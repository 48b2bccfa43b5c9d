#!/bin/sh
# Grants each role of bss-stream what it needs in Kafka and no more (docs/security.md), with the
# cluster's StandardAuthorizer. Granting again changes nothing.
#
#   BOOTSTRAP=kafka-1:9093 COMMAND_CONFIG=admin.properties deploy/kafka/acls.sh
#
# APP and PREFIX are the settings `app` and `log.kafka.topic_prefix`; the groups are the defaults.
# The roles' principals: User:bss-bridge, User:bss-processor, User:bss-publisher, User:bss-sink,
# User:bss-odoo, User:bss-auditor for `bss-stream audit` and User:bss-console for the operators' console.
# The processor makes missing topics: start it first. The queries do not use Kafka.
set -eu

BOOTSTRAP=${BOOTSTRAP:?the address of a broker, host:port}
COMMAND_CONFIG=${COMMAND_CONFIG:?the properties file of a principal that may alter ACLs}
KAFKA_ACLS=${KAFKA_ACLS:-kafka-acls.sh}
APP=${APP:-bss}
PREFIX=${PREFIX:-}

# grant PRINCIPAL "OPERATIONS" RESOURCE...
grant() {
    principal=$1
    operations=$2
    shift 2
    for operation in $operations; do
        set -- "$@" --operation "$operation"
    done
    "$KAFKA_ACLS" --bootstrap-server "$BOOTSTRAP" --command-config "$COMMAND_CONFIG" \
        --add --force --allow-principal "User:$principal" "$@"
}

topics() {
    for topic; do
        printf -- '--topic %s%s ' "$PREFIX" "$topic"
    done
}

signals=$(topics bss.signals.plan bss.signals.station bss.signals.asset)
states=$(topics bss.state.plan bss.state.station bss.state.asset)
ledgers=$(topics bss.ledger.payment bss.ledger.service)
outbox=$(topics bss.outbox)
dead=$(topics bss.dead-letter)
stock=$(topics bss.state.station)
plans=$(topics bss.state.plan)
refused=$(topics bss.odoo.refused)

# Every role looks at all topics when it starts; contents need Read.
for role in bss-bridge bss-processor bss-publisher bss-sink bss-odoo bss-auditor bss-console; do
    grant "$role" Describe --topic "${PREFIX}bss." --resource-pattern-type prefixed
done

# shellcheck disable=SC2086
{
    grant bss-bridge Write $signals $dead

    grant bss-processor Create --topic "${PREFIX}bss." --resource-pattern-type prefixed
    grant bss-processor "Read Write" $signals $states
    grant bss-processor Write $ledgers $outbox $dead
    grant bss-processor Read --group "${PREFIX}${APP}-processor"
    grant bss-processor "Describe Write" --transactional-id "${PREFIX}${APP}-" \
        --resource-pattern-type prefixed

    grant bss-publisher Read $outbox --group "${PREFIX}${APP}-publisher"
    grant bss-publisher Write $dead

    grant bss-sink Read $ledgers $stock --group "${PREFIX}${APP}-sink"

    grant bss-odoo Read $ledgers $plans $refused --group "${PREFIX}${APP}-odoo"
    grant bss-odoo Write $refused

    grant bss-auditor Read $plans

    grant bss-console Read $signals $ledgers $outbox $dead $plans
    # To replay; without these lines it reads only.
    grant bss-console Write $signals $dead
    grant bss-console "Describe Write" --transactional-id "${PREFIX}${APP}-replay"
}
