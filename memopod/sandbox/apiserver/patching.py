"""JSON patch (RFC 6902) and merge patch (RFC 7386)."""

from typing import Any, Final

import jsonpatch

from memopod.sandbox.apiserver.statuses import bad_request, patch_does_not_fit, unsupported_media_type

JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"


def patched(item: dict[str, Any], patch: Any, content_type: str) -> dict[str, Any]:
    """A copy of `item` with a patch applied; `item` stays as it is.

    Raises StatusError: 415 for a kind of patch that is not supported (strategic merge, apply), 400
    for a patch that is not of its kind's form, 422 for one that does not fit the object.
    """
    if content_type == JSON_PATCH:
        return apply_json_patch(item, patch)
    if content_type == MERGE_PATCH:
        if not isinstance(patch, dict):
            raise bad_request("a merge patch must be a JSON object")
        merged: dict[str, Any] = merge(item, patch)
        return merged
    raise unsupported_media_type(content_type, (JSON_PATCH, MERGE_PATCH))


def apply_json_patch(item: dict[str, Any], operations: Any) -> dict[str, Any]:
    """A copy of `item` with the operations applied; raises StatusError (400, 422)."""
    if not isinstance(operations, list) or not all(isinstance(step, dict) for step in operations):
        raise bad_request("a JSON patch must be a list of operations")
    try:
        result = jsonpatch.JsonPatch(operations).apply(item, in_place=False)
    except jsonpatch.InvalidJsonPatch as error:
        raise bad_request(f"invalid JSON patch: {error}") from error
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError) as error:
        # TypeError: the library steps into a string or a number as if it were an object.
        raise patch_does_not_fit() from error
    if not isinstance(result, dict):
        raise patch_does_not_fit()
    return result


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386: objects are merged, null removes a key, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged
