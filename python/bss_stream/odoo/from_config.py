"""The adapter and its client as a configuration wants them."""

from collections.abc import Callable

from bss_stream import tls
from bss_stream.config import Config
from bss_stream.log.protocol import Log
from bss_stream.mqtt.messages import MqttSettings
from bss_stream.odoo.adapter import OdooAdapter, OdooSettings
from bss_stream.odoo.billing import Measures
from bss_stream.odoo.client import Connection
from bss_stream.odoo.outbound import Describe, OutboundSettings
from bss_stream.odoo.reconcile import ReconcileSettings


def connection(config: Config) -> Connection:
    """Where Odoo is, and the key out of its file. Raises ConfigError."""
    odoo = config.odoo
    assert odoo.url is not None  # asked for only where there is one
    encrypted = odoo.url.startswith("https:")
    return Connection(
        url=odoo.url,
        api=odoo.api,
        database=odoo.database,
        username=odoo.username,
        key=config.odoo_key(),
        tls=tls.client_context("$.odoo", odoo.ca_file, None, None) if encrypted else None,
        timeout_s=odoo.timeout_ms / 1000,
        calls_per_s_max=odoo.calls_per_s_max,
    )


def make_adapter(
    config: Config,
    log: Log,
    mqtt: MqttSettings,
    measures: Measures,
    describe: Describe,
    clock_ms: Callable[[], int],
) -> OdooAdapter:
    """The role, not running yet. Raises ConfigError."""
    odoo, group = config.odoo, config.group("odoo")
    settings = OdooSettings(
        outbound=OutboundSettings(group, odoo.batch_records_max),
        reconcile=ReconcileSettings(
            interval_s=odoo.reconcile_interval_s,
            window_s=odoo.reconcile_window_hours * 3600,
            grace_s=odoo.reconcile_grace_s,
            replay=odoo.replay_missed,
        ),
        # rumqttd does not survive the return of a member of a shared subscription.
        shared_group=None if config.mqtt.embedded else group,
    )
    return OdooAdapter(
        log, mqtt, connection(config), odoo, measures, describe, settings, clock_ms=clock_ms
    )
