"""The AsyncAPI 3.0 document: channels, messages and operations on MQTT and on Kafka.

`receive` and `send` are the platform's: a client sends what the platform receives.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from bss_stream import __version__, _engine, topic_table, topics
from bss_stream.config import Config
from bss_stream.contract.catalogue import (
    ECHO_TOPICS,
    PAYLOADS,
    QUERY_TOPICS,
    answer_topic,
)
from bss_stream.contract.examples import examples
from bss_stream.contract.records import BETWEEN
from bss_stream.contract.requests import REQUESTS
from bss_stream.contract.schemas import Schema, components
from bss_stream.contract.sent import RETAINED
from bss_stream.echo import ECHO_EXPIRY_S, ECHO_PROPERTIES
from bss_stream.topics import LEDGERS, SIGNALS, STATES

VERSION: Final = "3.0.0"
_MQTT: Final = "0.2.0"
_KAFKA: Final = "0.5.0"
_SCHEMAS: Final = "#/components/schemas/"
_VARIABLE: Final = re.compile(r"\{(\w+)\}")
_VARIABLES: Final = {
    "plan_id": "The plan.",
    "location_id": "The station.",
    "asset_id": "The battery.",
    "fleet_id": "The fleet.",
    "service_id": "The service of the bundle.",
    "correlation_id": "The correlation id of the request.",
}
_ENTITIES: Final = ("plan", "station", "asset")
FRAME: Final = "application/vnd.bss-stream.frame"
"""A line of fields, then the body's bytes."""


def document() -> Schema:
    """The whole contract."""
    schemas, types = components(PAYLOADS, _SCHEMAS)
    channels, operations = _mqtt()
    kafka_channels, kafka_operations = _kafka()
    return {
        "asyncapi": VERSION,
        "info": _INFO,
        "defaultContentType": "application/json",
        "servers": _SERVERS,
        "channels": {**channels, **kafka_channels},
        "operations": {**operations, **kafka_operations},
        "components": {
            "schemas": types,
            "messages": {**_mqtt_messages(schemas), **_kafka_messages(schemas)},
            "messageTraits": {"cloudevents": _CLOUDEVENTS},
            "correlationIds": _CORRELATION,
        },
    }


_INFO: Final[Schema] = {
    "title": "bss_stream",
    "version": __version__,
    "description": "A stream processor for battery-swap networks. Riders, attendants, stations, "
    "ARM and Odoo speak MQTT 5; the log between the platform's roles is Kafka. Every request that "
    "names a plan or a battery is answered on a topic of its own, under its correlation id.",
    "license": {"name": "Apache-2.0"},
}

_SERVERS: Final[Schema] = {
    "mqtt": {
        "host": "{host}:{port}",
        "protocol": "mqtt",
        "protocolVersion": "5",
        "description": "Any MQTT 5 broker; `mqtt.host` and `mqtt.port` of the configuration.",
        "variables": {
            "host": {"default": "localhost"},
            "port": {"default": "1883", "examples": ["1883", "8883"]},
        },
    },
    "kafka": {
        "host": "{host}:{port}",
        "protocol": "kafka",
        "description": "`log.kafka.bootstrap_servers`; a topic's name has "
        "`log.kafka.topic_prefix` before it. Readers must be `read_committed`.",
        "variables": {"host": {"default": "localhost"}, "port": {"default": "9092"}},
    },
}

_CORRELATION: Final[Schema] = {
    "body": {
        "description": "Chosen by whoever asks; the echo has the same, as MQTT 5 correlation data, "
        "too. A request that is sent again under it is applied once.",
        "location": "$message.payload#/correlation_id",
    }
}

_CLOUDEVENTS: Final[Schema] = {
    "headers": {
        "type": "object",
        "description": "CloudEvents 1.0, binary mode: only with `log.kafka.cloudevents`.",
        "properties": {
            "ce_specversion": {"type": "string", "const": "1.0"},
            "ce_id": {
                "type": "string",
                "description": "A ledger entry's entry_id, else the producer's id, epoch and "
                "sequence number: unique within the source.",
            },
            "ce_source": {"type": "string", "description": "/topic/partition"},
            "ce_type": {
                "type": "string",
                "description": "The topic, then the event, kind or reason that the record names.",
            },
            "ce_time": {
                "type": "string",
                "format": "date-time",
                "description": "When the record was handed to the log: its Kafka time stamp.",
            },
            "content-type": {"type": "string"},
        },
    }
}


# MQTT.


def _mqtt() -> tuple[Schema, Schema]:
    channels: Schema = {}
    operations: Schema = {}
    echoes: dict[str, list[str]] = {}
    for event, address in ECHO_TOPICS:
        channel = _channel(channels, address, [f"echo.{event}"])
        echoes.setdefault(event, []).append(channel)
    echoes["station_tap"] = echoes["customer_binding"]
    table = topic_table.load()
    for row in table.rows:
        event = row.event
        channel = _channel(channels, row.filter, [f"request.{event}"])
        reply = echoes.get(event, [])
        operations[f"receive.{event}"] = _receive(channel, f"request.{event}", reply)
    for event, replies in echoes.items():
        for number, channel in enumerate(replies, 1):
            name = f"send.{event}_echo" if number == 1 else f"send.{event}_echo_{number}"
            if event != "station_tap":
                operations[name] = _send(channel, [f"echo.{event}"])
    for query, address in QUERY_TOPICS:
        asked = _channel(channels, address, [f"query.{query}"])
        told = _channel(channels, answer_topic(query), [f"answer.{query}"])
        operations[f"receive.{query}"] = _receive(asked, f"query.{query}", [told])
        operations[f"send.{query}_echo"] = _send(told, [f"answer.{query}"])
    for sent in table.sent:
        name = sent.topic.rpartition("/")[2]
        channel = _channel(channels, sent.topic, [f"sent.{name}"])
        channels[channel]["description"] = f"To {sent.to}: {sent.when}."
        is_retained = name in RETAINED
        operations[f"send.{name}"] = _send(channel, [f"sent.{name}"], is_retained=is_retained)
    return channels, operations


def _channel(channels: Schema, address: str, messages: Iterable[str]) -> str:
    """Adds a channel; its name is what is fixed of its topic."""
    fixed = [part for part in address.split("/") if not part.startswith("{")]
    name = "_".join(fixed)
    channels[name] = {
        "address": address,
        "servers": [{"$ref": "#/servers/mqtt"}],
        "messages": {message: _ref("messages", message) for message in messages},
        "parameters": {
            variable: {"description": _VARIABLES[variable]}
            for variable in _VARIABLE.findall(address)
        },
    }
    return name


def _receive(channel: str, message: str, replies: list[str]) -> Schema:
    operation: Schema = {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
        "bindings": {"mqtt": {"qos": 1, "retain": False, "bindingVersion": _MQTT}},
    }
    if replies:
        # Where there are two, the second has the same for older clients.
        operation["reply"] = {"channel": {"$ref": f"#/channels/{replies[0]}"}}
    return operation


def _send(channel: str, messages: list[str], *, is_retained: bool = False) -> Schema:
    binding: Schema = {"qos": 1, "retain": is_retained, "bindingVersion": _MQTT}
    if not is_retained:
        binding["messageExpiryInterval"] = ECHO_EXPIRY_S
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"} for message in messages],
        "bindings": {"mqtt": binding},
    }


def _mqtt_messages(schemas: Mapping[str, Schema]) -> Schema:
    shown = examples()
    groups = ("request", "echo", "sent", "query", "answer")
    messages: Schema = {}
    for payload in PAYLOADS:
        group, _, name = payload.name.partition("/")
        if group not in groups:
            continue
        message: Schema = {
            "name": name,
            "summary": payload.description.partition("\n")[0],
            "contentType": "application/json",
            "payload": schemas[payload.name],
        }
        if payload.name not in _WITHOUT_CORRELATION:
            message["correlationId"] = {"$ref": "#/components/correlationIds/body"}
        if group in ("echo", "answer"):
            message["headers"] = _USER_PROPERTIES
        if payload.name in shown:
            message["examples"] = [{"payload": shown[payload.name]}]
        messages[f"{group}.{name}"] = message
    return messages


_WITHOUT_CORRELATION: Final = frozenset({"sent/payment_state", "sent/inventory", "sent/readiness"})

_USER_PROPERTIES: Final[Schema] = {
    "type": "object",
    "description": "MQTT 5 user properties.",
    "properties": {
        name: {"type": "string"} if name == "platform_version" else {"const": value}
        for name, value in ECHO_PROPERTIES
    },
}


# Kafka.


def _kafka() -> tuple[Schema, Schema]:
    channels: Schema = {}
    operations: Schema = {}
    for topic in topics.ALL:
        channels[topic] = {
            "address": topic,
            "servers": [{"$ref": "#/servers/kafka"}],
            "messages": {topic: _ref("messages", topic)},
            "bindings": {
                "kafka": {
                    "topic": topic,
                    "partitions": Config().partitions,
                    "topicConfiguration": {
                        "cleanup.policy": ["compact" if topic in STATES else "delete"]
                    },
                    "bindingVersion": _KAFKA,
                }
            },
        }
        actions = ("send", "receive") if topic in SIGNALS else ("send",)
        for action in actions:
            operations[f"{action}.{topic}"] = {
                "action": action,
                "channel": {"$ref": f"#/channels/{topic}"},
                "messages": [{"$ref": f"#/channels/{topic}/messages/{topic}"}],
            }
    return channels, operations


def _kafka_messages(schemas: Mapping[str, Schema]) -> Schema:
    messages = {}
    for entity, topic in zip(_ENTITIES, SIGNALS, strict=True):
        bodies = [schemas[name] for name in _signals_of(topic)]
        messages[topic] = _record(
            topic,
            f"The {entity}'s id.",
            f"A signal for a {entity}.",
            _frame(schemas, "signal", bodies),
        )
    for entity, topic in zip(_ENTITIES, STATES, strict=True):
        state = {
            "type": "string",
            "description": "Bytes of the platform's own; x-described is what they say.",
            "x-described": schemas[f"state/{entity}"],
        }
        body = {"contentType": "application/octet-stream", "payload": state}
        messages[topic] = _record(topic, f"The {entity}'s id.", f"A {entity}'s state.", body)
    for ledger, topic in zip(("payment", "service"), LEDGERS, strict=True):
        body = {"contentType": "application/json", "payload": schemas[f"ledger/{ledger}"]}
        messages[topic] = _record(
            topic, "The plan's id.", f"An entry of the {ledger} ledger.", body
        )
    outbox = [schemas[one.name] for one in PAYLOADS if one.name.startswith(("echo/", "sent/"))]
    messages[topics.OUTBOX] = _record(
        topics.OUTBOX,
        "The id of the entity that speaks.",
        "An MQTT message to be published.",
        _frame(schemas, "outbox", outbox),
    )
    refused = {"contentType": "application/json", "payload": schemas["odoo/refused"]}
    messages[topics.ODOO_REFUSED] = _record(
        topics.ODOO_REFUSED, "The plan's id.", "What Odoo has refused for good.", refused
    )
    messages[topics.DEAD_LETTER] = _record(
        topics.DEAD_LETTER,
        "The key of the record that could not be processed, or the MQTT topic.",
        "What could not be processed, and why.",
        _frame(schemas, "dead_letter", []),
    )
    return messages


def _signals_of(topic: str) -> list[str]:
    entity = _ENTITIES[SIGNALS.index(topic)]
    events = [event for kind, event in _engine.events() if kind == entity]
    groups = (("request", REQUESTS), ("record", BETWEEN))
    return [f"{group}/{event}" for group, kinds in groups for event in kinds if event in events]


def _frame(schemas: Mapping[str, Schema], frame: str, bodies: list[Schema]) -> Schema:
    payload: Schema = {
        "type": "string",
        "pattern": "^[12]\\t",
        "description": "One line of tab-separated fields, the first of them the layout's version; "
        "then the body. x-header has the other fields in their order, x-body what the body may be.",
        "x-header": schemas[f"frame/{frame}"],
    }
    if bodies:
        payload["x-body"] = {"anyOf": bodies}
    return {"contentType": FRAME, "payload": payload}


def _record(topic: str, key: str, summary: str, body: Schema) -> Schema:
    return {
        "name": topic,
        "summary": summary,
        **body,
        "traits": [{"$ref": "#/components/messageTraits/cloudevents"}],
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": key},
                "bindingVersion": _KAFKA,
            }
        },
    }


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}
