"""Google's copies on its own side: copied, rewritten, moved and composed objects.

After the public reference of the JSON API. A rewrite takes one step.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import httpx

from emulator.hosts.google_wire import Refusal, objects_in, read_json
from emulator.network.reply import json_reply
from emulator.storage.google import GoogleBucket, GoogleBuckets, GoogleObject

__all__ = ["check_generation", "copy", "find_bucket", "find_object"]

_TARGET = re.compile(r"(copyTo|rewriteTo)/b/([^/]+)/o/([^/]+)|(moveTo)/o/([^/]+)|(compose)")
#: What a request may say of the object that it makes.
_EDITABLE = (
    *("contentType", "cacheControl", "contentDisposition", "contentEncoding", "contentLanguage"),
    *("metadata", "storageClass", "customTime", "contexts"),
)


def copy(
    store: GoogleBuckets, request: httpx.Request, bucket: GoogleBucket, name: str, verb: str
) -> httpx.Response | None:
    """Answer what is asked of an object with a *verb*, the end of the path; None: it is another."""
    match = _TARGET.fullmatch(verb)
    if match is None or request.method != "POST":
        return None
    kind = match[1] or match[4] or match[6]
    parameters, told = request.url.params, read_json(request.read())
    public = parameters.get("destinationPredefinedAcl", "").startswith("publicRead")
    if kind == "compose":
        check_generation(parameters, bucket, name)
        parts = [_source_of_part(bucket, part) for part in objects_in(told.get("sourceObjects"))]
        resource = _editable(objects_in([told.get("destination") or {}])[0])
        data = b"".join(part.data for part in parts)
        return json_reply(store.store(bucket.name, name, data, resource, public).as_json)
    source = find_object(bucket, name)
    wanted = parameters.get("sourceGeneration", str(source.generation))
    if wanted != str(source.generation):
        raise Refusal(404, f"No such object: {bucket.name}/{name}#{wanted}", "notFound")
    check_generation(parameters, bucket, name, "ifSourceGenerationMatch")
    target = bucket if kind == "moveTo" else find_bucket(store, match[2])
    new_name = unquote(match[3] or match[5])
    check_generation(parameters, target, new_name)
    resource = {**_editable(source.resource), **_editable(told)}
    public = public or (kind == "moveTo" and source.public)
    made = store.store(target.name, new_name, source.data, resource, public)
    if kind == "moveTo" and made.name != name:
        del bucket.objects[name]
    if kind != "rewriteTo":
        return json_reply(made.as_json)
    size = str(len(made.data))
    answer = {"kind": "storage#rewriteResponse", "done": True, "resource": made.as_json}
    return json_reply({**answer, "totalBytesRewritten": size, "objectSize": size})


def check_generation(
    parameters: httpx.QueryParams, bucket: GoogleBucket, name: str, by: str = "ifGenerationMatch"
) -> None:
    """Refuse what was meant for another object than the one with this name; 0: for none."""
    wanted = parameters.get(by)
    there = bucket.objects.get(name)
    if wanted is not None and wanted != (str(there.generation) if there else "0"):
        why = "At least one of the pre-conditions you specified did not hold."
        raise Refusal(412, why, "conditionNotMet")


def find_bucket(store: GoogleBuckets, bucket: str) -> GoogleBucket:
    """A bucket by its name as it stands in a path."""
    found = store.buckets.get(unquote(bucket))
    if found is None:
        raise Refusal(404, "The specified bucket does not exist.", "notFound")
    return found


def find_object(bucket: GoogleBucket, name: str) -> GoogleObject:
    """An object by its name."""
    found = bucket.objects.get(name)
    if found is None:
        raise Refusal(404, f"No such object: {bucket.name}/{name}", "notFound")
    return found


def _source_of_part(bucket: GoogleBucket, part: dict[str, Any]) -> GoogleObject:
    found = find_object(bucket, str(part.get("name")))
    conditions = objects_in([part.get("objectPreconditions") or {}])[0]
    wanted = conditions.get("ifGenerationMatch")
    if wanted is not None and str(wanted) != str(found.generation):
        why = "At least one of the pre-conditions you specified did not hold."
        raise Refusal(412, why, "conditionNotMet")
    return found


def _editable(resource: dict[str, Any]) -> dict[str, Any]:
    return {name: resource[name] for name in _EDITABLE if resource.get(name) is not None}
