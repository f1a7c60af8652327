"""The description of this provider for Airflow: connection form, configuration section, class names.

Invariant: this module imports nothing, because every Airflow process calls `get_provider_info`. Optional connection
fields allow null, because Airflow treats a missing field and a null in the extra in the same way.
"""

from __future__ import annotations

from typing import Any

_PACKAGE = "airflow_provider_geminiimg"
_INTEGRATION = "Gemini Images"

_INTEGRATIONS = (
    (_INTEGRATION, "https://ai.google.dev/", ["/docs/quickstart.md", "/docs/operators.md", "/docs/batch.md"]),
    ("1min.ai", "https://docs.1min.ai/docs/api/ai-feature-api", ["/docs/connection.md"]),
    ("APIMaster.ai", "https://apimaster.ai/docs/en/api/images", ["/docs/connection.md"]),
)

_OPTIONAL_TEXT = ["string", "null"]
_OPTIONAL_COUNT = {"type": ["integer", "null"], "minimum": 1}

_CONN_FIELDS: dict[str, dict[str, Any]] = {
    "gateway": {
        "label": "Gateway",
        "description": "The service of the API key.",
        "schema": {
            "type": "string",
            "enum": ["1min", "apimaster"],
            "values_display": {"1min": "1min.ai", "apimaster": "APIMaster.ai"},
        },
    },
    "model": {
        "label": "Default model",
        "description": (
            "Used by tasks without a model. Empty: gemini-3.1-flash-image-preview on 1min.ai, "
            "gemini-3.1-flash-image on APIMaster.ai. Any id is accepted; of the ids listed here, "
            "gemini-2.5-flash-image exists only on 1min.ai. The connection test lists the available models."
        ),
        "schema": {
            "type": _OPTIONAL_TEXT,
            "examples": [
                "gemini-3.1-flash-image-preview",
                "gemini-3-pro-image-preview",
                "gemini-2.5-flash-image",
                "gemini-3.1-flash-lite-image",
                "gemini-nano-banana-2.1",
                "gemini-3.1-flash-image",
                "gemini-3-pro-image",
            ],
        },
    },
    "requests_per_minute": {
        "label": "Requests per minute",
        "description": "Limit for submits, polls and uploads of all processes together. Empty: 180.",
        "schema": _OPTIONAL_COUNT,
    },
    "max_concurrency": {
        "label": "Concurrent requests",
        "description": (
            "Limit for paid requests in flight, and for polls in flight, of all processes together. Empty: 8 in each "
            "process."
        ),
        "schema": _OPTIONAL_COUNT,
    },
    "shared_limits": {
        "label": "Limits over all processes",
        "description": "No: each worker process has these two limits for itself. Empty: yes.",
        "schema": {"type": ["boolean", "null"]},
    },
    "price_base": {
        "label": "Base price",
        "description": (
            "Your price of one 1K image of the default model. For other models use the prices by model. Empty: an "
            "estimate from Google's list price."
        ),
        "schema": {"type": ["number", "null"], "minimum": 0},
    },
    "prices": {
        "label": "Prices by model",
        "description": (
            'Your price of one image by model, and optionally by size: {"gemini-3-pro-image": {"1K": 0.14, '
            '"4K": 0.25}}. A single number is the price at 1K. Takes precedence over the base price.'
        ),
        "schema": {"type": ["object", "null"]},
    },
    "price_currency": {
        "label": "Currency of the prices",
        "description": "The currency of the base price, the prices by model and all caps.",
        "schema": {
            "type": _OPTIONAL_TEXT,
            "enum": ["USD", "credits", None],
            "values_display": {"null": "not set (USD)"},
        },
    },
    "daily_budget": {
        "label": "Daily budget",
        "description": (
            "Limit for the cost of all workers together per day (UTC), in the currency of the prices. Empty: no limit."
        ),
        "schema": {"type": ["number", "null"], "minimum": 0},
    },
    "run_budget": {
        "label": "Budget of a DAG run",
        "description": (
            "Limit for the cost of one DAG run, with all its tasks, retries, clears and loops, in the currency of the "
            "prices. Empty: no limit."
        ),
        "schema": {"type": ["number", "null"], "minimum": 0},
    },
    "allow_http": {
        "label": "Allow plain http",
        "description": "Allow sending the API key unencrypted to another machine. Only for a test network.",
        "schema": {"type": ["boolean", "null"]},
    },
}
# Without a section name Airflow hides these fields under "Extra Fields".
for _field in _CONN_FIELDS.values():
    _field["schema"] = {**_field["schema"], "section": "Gateway, model, limits and price"}

_CONNECTION_TYPE: dict[str, Any] = {
    "connection-type": "geminiimg",
    "hook-class-name": f"{_PACKAGE}.hooks.geminiimg.GeminiImageHook",
    "hook-name": _INTEGRATION,
    "conn-fields": _CONN_FIELDS,
    "ui-field-behaviour": {
        "hidden-fields": ["login", "schema"],
        "relabeling": {"password": "API key", "host": "Base URL"},
        "placeholders": {
            "host": "empty: https://api.1min.ai or https://apimaster.ai/v1",
            "port": "443, if Airflow's test button requires a port",
        },
    },
}

_OPTIONS: dict[str, dict[str, Any]] = {
    "root": {
        "description": (
            "Folder URI for the data of the provider: the ledger of paid requests, and the images of tasks without an\n"
            "output path. Every worker must see the same folder, so use a bucket if workers share no disk.\n"
            "``file://``, ``s3://``, ``gs://`` and ``abfs://`` are supported; ``s3://conn_id@bucket/prefix`` names an\n"
            "Airflow connection.\n"
        ),
        "type": "string",
        "example": "s3://aws_default@my-bucket/geminiimg",
        "default": "file://{AIRFLOW_HOME}/geminiimg",
    },
    "namespace": {
        "description": "Separates the ledgers of several Airflow deployments that share one root.\n",
        "type": "string",
        "example": "production",
        "default": "default",
    },
    "allowed_roots": {
        "description": (
            "Comma-separated URI prefixes, connection part included, under which every input, output, manifest and\n"
            "recorded URI must lie. Unset: any.\n"
        ),
        "type": "string",
        "example": "s3://aws_default@my-bucket/,file:///data/images",
        "default": None,
    },
    "gallery_roots": {
        "description": (
            "Comma-separated URI prefixes, connection part included, from which the gallery may show images,\n"
            "besides the root. Every user who may read a DAG sees its images there. Unset: only the root.\n"
        ),
        "type": "string",
        "example": "s3://aws_default@my-bucket/campaigns",
        "default": None,
    },
    "gallery_tabs": {
        "description": "Show the tab Images on each DAG, run, task and task instance. Browse has its page anyway.\n",
        "type": "boolean",
        "example": "False",
        "default": "True",
    },
    "max_batch_images": {
        "description": (
            "Limit for the images of one batch (rows times ``n``). A larger batch is refused before money is spent.\n"
            "From 1 to 1000000; the worker holds about 4 KB per image.\n"
        ),
        "type": "integer",
        "example": "50000",
        "default": "10000",
    },
    "keep_records_days": {
        "description": (
            "The collect operator removes the records of task instances that ended longer ago than this number of\n"
            "days, as ``jobs purge`` does; at least 30. Images stay. Unset: records are kept for ever. A task whose\n"
            "records were removed may pay again if it is cleared or retried: keep them longer than any task waits.\n"
        ),
        "type": "integer",
        "example": "90",
        "default": "",
    },
    "record_prompts": {
        "description": "Write prompts into the ledger and the sidecar files. When False, only their hash is stored.\n",
        "type": "boolean",
        "example": "True",
        "default": "False",
    },
}


def get_provider_info() -> dict[str, Any]:
    """The provider's description, in the shape of Airflow's ``provider_info.schema.json``."""

    def at(*modules: str) -> list[dict[str, Any]]:
        return [{"integration-name": _INTEGRATION, "python-modules": [f"{_PACKAGE}.{module}" for module in modules]}]

    return {
        "package-name": "airflow-provider-geminiimg",
        "name": _INTEGRATION,
        "description": "Images from Gemini image models, through the gateways 1min.ai and APIMaster.ai.",
        "integrations": [
            {"integration-name": name, "external-doc-url": url, "how-to-guide": guides, "tags": ["ai", "service"]}
            for name, url, guides in _INTEGRATIONS
        ],
        "operators": at(
            *(
                f"operators.{name}"
                for name in ("generate", "edit", "submit", "batch", "wide_batch", "collect", "review", "doctor")
            ),
        ),
        "sensors": at("sensors.job"),
        "hooks": at("hooks.geminiimg"),
        "triggers": at("triggers.job", "triggers.root_view"),
        "task-decorators": [
            {"name": name, "class-name": f"{_PACKAGE}.decorators.gemini_image.{name}_task"}
            for name in ("gemini_image", "gemini_image_batch")
        ],
        "connection-types": [_CONNECTION_TYPE],
        "extra-links": [f"{_PACKAGE}.gallery.link.ImagesLink"],
        "plugins": [{"name": "geminiimg_gallery", "plugin-class": f"{_PACKAGE}.gallery.plugin.GalleryPlugin"}],
        "cli": [f"{_PACKAGE}.__main__.airflow_commands"],  # Airflow 3.2 and later look for it
        "config": {
            "geminiimg": {
                "description": "Settings of the Gemini Images provider.",
                "options": {name: {**option, "version_added": "0.1.0"} for name, option in _OPTIONS.items()},
            }
        },
    }
