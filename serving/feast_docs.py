"""What the OpenAPI document says of the routes of Feast's own server."""

from typing import Any

from serving.problems import ProblemDetails

Problems = dict[int | str, dict[str, Any]]

_DOWN: dict[str, Any] = {"model": ProblemDetails, "description": "The online store cannot be reached: try again"}
_LARGE: dict[str, Any] = {"model": ProblemDetails, "description": "Too many rows or bytes at once"}

READ_PROBLEMS: Problems = {
    404: {"model": ProblemDetails, "description": "Unknown view, feature or feature service"},
    413: _LARGE,
    422: {"model": ProblemDetails, "description": "Invalid request: the field, its value and the reason"},
    503: _DOWN,
}
WRITE_PROBLEMS: Problems = READ_PROBLEMS | {
    404: {"model": ProblemDetails, "description": "Unknown view"},
    422: {"model": ProblemDetails, "description": "A stream view, or a column or value that it cannot have"},
}

_COLUMNS = {"type": "object", "additionalProperties": {"type": "array", "items": {}}, "minProperties": 1}


def _body(required: list[str], properties: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": required, "properties": properties, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


READ_BODY = _body(
    ["entities"],
    {
        "entities": _COLUMNS | {"description": "Of each join key the ids, one a row; up to 10,000 rows"},
        "features": {
            "type": ["array", "null"],
            "items": {"type": "string", "pattern": ":"},
            "maxItems": 1000,
            "description": "view:feature; needed if no feature service is named",
        },
        "feature_service": {"type": ["string", "null"], "description": "Goes before `features`"},
        "full_feature_names": {"type": "boolean", "default": False, "description": "view__feature in the answer"},
        "include_feature_view_version_metadata": {"type": "boolean", "default": False},
    },
    {"entities": {"restaurant_id": [30, 31]}, "features": ["restaurant_recent_orders:orders_10m"]},
)
PUSH_BODY = _body(
    ["push_source_name", "df"],
    {
        "push_source_name": {"type": "string", "description": "The topic"},
        "df": _COLUMNS | {"description": "The events' fields, by column; up to 10,000 rows"},
        "to": {
            "enum": ["online", "offline", "online_and_offline"],
            "default": "online",
            "description": "All the same here: features and history both come from the log",
        },
    },
    {
        "push_source_name": "courier_status",
        "df": {
            "event_id": ["c1"],
            "courier_id": [7],
            "zone_id": [3],
            "status": ["available"],
            "at": ["2026-11-22T18:04:05Z"],
        },
    },
)
WRITE_BODY = _body(
    ["feature_view_name", "df"],
    {
        "feature_view_name": {"type": "string", "description": "A batch view"},
        "df": _COLUMNS
        | {
            "description": "Join keys, all features, `event_timestamp` and, if there is one, `created`, or these two "
            "as the view's source calls them: ISO 8601, UTC where there is no offset; up to 10,000 rows"
        },
        "allow_registry_cache": {
            "type": "boolean",
            "default": True,
            "description": "False: read the registry anew if the view is not known",
        },
    },
    {
        "feature_view_name": "restaurant_profile",
        "df": {
            "restaurant_id": [30],
            "zone_id": [3],
            "cuisine": ["thai"],
            "latitude": [52.4],
            "longitude": [4.9],
            "event_timestamp": ["2026-11-22T00:00:00"],
            "created": ["2026-11-22T00:10:00"],
        },
    },
)
