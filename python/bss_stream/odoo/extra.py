"""What to say where the extra that the adapter needs is not installed."""

from bss_stream.errors import ConfigError


def missing(error: ImportError) -> ConfigError:
    """The error for an adapter without its HTTP client."""
    return ConfigError(
        [
            f"$.odoo.url: the HTTP client does not import ({error}): install the extra, "
            "pip install 'bss_stream[odoo]'"
        ]
    )
