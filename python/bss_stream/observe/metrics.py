"""What the roles' counters are called outside: every metric's name, kind and meaning, as data.

`python -m bss_stream.observe.metrics` prints docs/metrics.md, which is that output.
"""

from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple

from bss_stream.roles import Role

Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """One metric, with the labels that tell its series apart."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"{name}_total", "counter", help, labels)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, "gauge", help, labels)


def _histogram(name: str, help: str) -> Metric:
    return Metric(name, "histogram", help)


COUNTED: Final[Mapping[Role, Mapping[str, Metric]]] = {
    "bridge": {
        "received": _counter("bss_bridge_messages", "MQTT messages received."),
        "in_hand": _gauge("bss_bridge_messages_in_hand", "Received, and not in the log yet."),
        "appended": _counter("bss_bridge_signals", "Signals that the log has."),
        "refused": _counter(
            "bss_bridge_dead_letters", "Messages that became dead letters.", "reason"
        ),
        "acknowledged": _counter("bss_bridge_acknowledgements", "PUBACKs sent."),
        "batches": _counter("bss_bridge_batches", "Batches appended."),
        "append_failures": _counter(
            "bss_bridge_append_failures", "Attempts at a batch that the log did not take."
        ),
        "append_s": _histogram(
            "bss_bridge_append_seconds",
            "From a message's receipt until the log has it; the oldest of a batch speaks for it.",
        ),
        "batch_messages": _histogram("bss_bridge_batch_messages", "Messages in a batch."),
    },
    "processor": {
        "records": _counter("bss_processor_records", "Signals consumed and committed."),
        "transactions": _counter("bss_processor_transactions", "Transactions committed."),
        "aborted": _counter(
            "bss_processor_transactions_aborted",
            "Transactions that were not committed, as far as the log has said.",
        ),
        "restored": _counter(
            "bss_processor_restored_records", "Records of states that restores have read."
        ),
        "from_checkpoints": _counter(
            "bss_processor_checkpoint_records", "Of those, how many came out of checkpoints."
        ),
        "checkpoints": _counter("bss_processor_checkpoints", "Checkpoints written."),
        "rejoined": _counter("bss_processor_rejoins", "Times that the group was joined anew."),
        "engine_s": _counter("bss_processor_engine_seconds", "Time spent in the engine."),
        "commit_s": _counter("bss_processor_commit_seconds", "Time spent on commits."),
        "restore_s": _counter("bss_processor_restore_seconds", "Time spent on restores."),
        "timers_fired": _counter("bss_processor_timers_fired", "Timers that fired."),
        "dead_letters": _counter(
            "bss_processor_dead_letters",
            "Dead letters written, also of signals that were applied.",
            "reason",
        ),
        "stock_signals": _counter(
            "bss_processor_stock_signals",
            "What operators were told of stations' stocks, such as INVENTORY_EMPTY.",
            "signal",
        ),
        "outcomes": _counter(
            "bss_processor_outcomes",
            "Signals by how they ended (applied, rejected, duplicate, dead_lettered, in_progress) "
            "and why.",
            "ending",
            "reason",
        ),
        "batch_s": _histogram(
            "bss_processor_batch_seconds",
            "From a batch's poll until all that follows from it is committed.",
        ),
        "age_s": _histogram(
            "bss_processor_age_seconds",
            "From a signal's receipt by the bridge until it is committed; the oldest of a chunk "
            "speaks for it.",
        ),
        "transaction_s": _histogram(
            "bss_processor_transaction_seconds", "A committed transaction of one shard."
        ),
        "batch_records": _histogram("bss_processor_batch_records", "Signals in a batch."),
    },
    "publisher": {
        "owed": _counter("bss_publisher_records", "Records of the outbox that are settled."),
        "published": _counter("bss_publisher_messages", "Messages that the broker has."),
        "refused": _counter(
            "bss_publisher_dead_letters", "Records that became dead letters.", "reason"
        ),
        "batches": _counter("bss_publisher_batches", "Batches published."),
        "commits": _counter("bss_publisher_commits", "Commits of offsets."),
        "rejoined": _counter("bss_publisher_rejoins", "Times that the group was joined anew."),
        "publish_s": _histogram(
            "bss_publisher_publish_seconds",
            "From a batch's poll until the broker has acknowledged all of it.",
        ),
        "echo_age_s": _histogram(
            "bss_publisher_echo_age_seconds",
            "From the receipt of what an echo answers, or of the asset manager's answer, until the "
            "broker has acknowledged the echo; the oldest of a chunk speaks for it.",
        ),
        "batch_messages": _histogram("bss_publisher_batch_messages", "Messages in a batch."),
    },
    "sink": {
        "records": _counter("bss_sink_records", "Records settled."),
        "entries": _counter("bss_sink_entries", "Ledger entries written."),
        "duplicates": _counter("bss_sink_duplicates", "Entries that the database had already."),
        "rejects": _counter("bss_sink_rejects", "Records that went to sink_rejects.", "reason"),
        "stations": _counter("bss_sink_station_states", "States of stations written."),
        "batches": _counter("bss_sink_batches", "SQL transactions committed."),
        "unavailable": _counter(
            "bss_sink_database_failures", "Attempts that found the database gone."
        ),
        "group_commit_failures": _counter(
            "bss_sink_group_commit_failures", "Commits of offsets that the log did not take."
        ),
        "rejoined": _counter("bss_sink_rejoins", "Times that the group was joined anew."),
        "write_s": _histogram(
            "bss_sink_write_seconds", "What a batch takes until the database has it."
        ),
        "age_s": _histogram(
            "bss_sink_age_seconds",
            "From the receipt of an entry's cause until the database has the entry; the oldest of "
            "a batch speaks for it.",
        ),
        "batch_records": _histogram("bss_sink_batch_records", "Records in a batch."),
    },
    "queries": {
        "received": _counter("bss_queries_requests", "Requests received."),
        "in_hand": _gauge("bss_queries_requests_in_hand", "Received, and not answered yet."),
        "answers": _counter(
            "bss_queries_answers", "Requests by outcome: ok, or why there is no answer.", "outcome"
        ),
        "refused": _counter("bss_queries_echoes_refused", "Echoes that the broker did not take."),
        "unavailable": _counter(
            "bss_queries_database_failures", "Attempts that found the database gone."
        ),
        "answer_s": _histogram(
            "bss_queries_answer_seconds",
            "From a request's receipt until the broker has its echo; the oldest of a batch speaks "
            "for it.",
        ),
        "batch_requests": _histogram("bss_queries_batch_requests", "Requests in a batch."),
    },
    "odoo": {
        "records": _counter("bss_odoo_records", "Records of the log that are settled."),
        "written": _counter("bss_odoo_written", "Records that Odoo has taken.", "kind"),
        "refused": _counter(
            "bss_odoo_refused", "Records that Odoo will never take as they are.", "kind"
        ),
        "no_billing": _counter(
            "bss_odoo_no_billing", "Entries that are none of Odoo's business, and plans gone."
        ),
        "unchanged": _counter("bss_odoo_unchanged", "States that say what Odoo has already."),
        "queries": _counter("bss_odoo_queries", "Payment status queries."),
        "answers": _counter(
            "bss_odoo_answers", "Queries by outcome: ok, or why there is no answer.", "outcome"
        ),
        "in_hand": _gauge("bss_odoo_queries_in_hand", "Queries that are not answered yet."),
        "echoes_refused": _counter(
            "bss_odoo_echoes_refused", "Echoes that the broker did not take."
        ),
        "invoices": _counter(
            "bss_odoo_invoices",
            "Paid invoices looked at, by what the ledgers say: applied, missed, replayed, "
            "ambiguous or unusable.",
            "outcome",
        ),
        "rounds": _counter("bss_odoo_rounds", "Rounds of reconciliation."),
        "batches": _counter("bss_odoo_batches", "Batches settled."),
        "unavailable": _counter("bss_odoo_failures", "Attempts that found Odoo away or busy."),
        "rejoined": _counter("bss_odoo_rejoined", "Times that the group was joined again."),
    },
}
"""Every field of every role's counters."""

INFO: Final = _gauge(
    "bss_info", "1, with what this process is.", "version", "instance", "log", "roles"
)
PARTITIONS: Final = _gauge("bss_partitions", "Partitions of every topic, and so all shards.")
READY: Final = _gauge(
    "bss_role_ready", "Whether a role has all that it needs: what /readyz asks.", "role"
)
UNBALANCED: Final = _gauge(
    "bss_counters_unbalanced",
    "What does not add up in a role's counters: 0, unless the program is wrong.",
    "role",
)
LEFT_OUT: Final = _gauge(
    "bss_scrape_parts_missing", "Parts of this scrape that were not answered in time."
)
LAG: Final = _gauge(
    "bss_lag_records",
    "Records of the log that a role has not read yet, of the partitions that it has.",
    *("role", "topic", "partition"),
)
CONNECTED: Final = _gauge("bss_mqtt_connected", "Whether there is a connection.", "role")
CONNECTIONS: Final = _counter("bss_mqtt_connections", "Connections made, the first too.", "role")
SENT_AGAIN: Final = _counter(
    "bss_mqtt_messages_sent_again", "Messages published again after a lost connection.", "role"
)
PAUSES: Final = _counter(
    "bss_mqtt_reading_pauses", "Times that reading paused because the inbox was full.", "role"
)
UNEXPECTED_ACKS: Final = _counter(
    "bss_mqtt_unexpected_acks", "PUBACKs that nobody waits for: the broker's fault.", "role"
)
SHARDS: Final = _gauge("bss_processor_shards", "Shards by state: ready, or restoring.", "state")
RESTORED: Final = _gauge(
    "bss_processor_restore_ratio",
    "How much of its changelogs a shard that is restored has read, 0 to 1.",
    "shard",
)
ENTITIES: Final = _gauge(
    "bss_processor_entities", "Plans, stations and assets of a shard.", "shard", "entity"
)
TIMERS: Final = _gauge("bss_processor_timers_armed", "Timers that are set.", "shard")
HOLDS: Final = _gauge(
    "bss_processor_holds_open", "Swaps that hold quota and await the asset manager.", "shard"
)
ALLOCATIONS: Final = _gauge(
    "bss_processor_allocations_open",
    "Allocations that stations have asked for and that are not answered.",
    "shard",
)
STOCK: Final = _gauge(
    "bss_processor_stock_batteries", "Batteries in stock.", "location_id", "fleet_id"
)
PROMISED: Final = _gauge(
    "bss_processor_stock_promised_batteries",
    "Of those, promised to allocations under way.",
    *("location_id", "fleet_id"),
)

STANDING: Final = (
    *(INFO, PARTITIONS, READY, UNBALANCED, LEFT_OUT, LAG),
    *(CONNECTED, CONNECTIONS, SENT_AGAIN, PAUSES, UNEXPECTED_ACKS),
    *(SHARDS, RESTORED, ENTITIES, TIMERS, HOLDS, ALLOCATIONS, STOCK, PROMISED),
)
"""What is looked at when somebody asks."""


def every() -> Iterator[Metric]:
    """Every metric of this program."""
    yield from STANDING
    for of_role in COUNTED.values():
        yield from of_role.values()


_HEAD: Final = """\
# Metrics

What `/metrics` tells ([observability.md](observability.md)), beside `process_*` and `python_*` of
the Prometheus client. Histograms have the suffixes `_bucket`, `_sum` and `_count`.

"""


def render() -> str:
    """The text of docs/metrics.md."""
    lines = [_HEAD, "| metric | kind | labels | what |", "\n|---|---|---|---|\n"]
    for metric in every():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |\n")
    return "".join(lines)


if __name__ == "__main__":
    print(render(), end="")
