"""What schemathesis cannot know of the gateway from its description."""

import schemathesis

# the header that schemathesis invents
UNKNOWN = "x-schemathesis-unknown-property"


def too_long(body, schema):
    """Does a text have more bytes than the extension x-max-bytes says? JSON Schema counts characters."""
    if not isinstance(body, dict):
        return False
    for name, member in schema.get("properties", {}).items():
        most, text = member.get("x-max-bytes"), body.get(name)
        if most and isinstance(text, str) and len(text.encode("utf-8", "surrogatepass")) > most:
            return True
    return False


@schemathesis.hook
def filter_case(context, case):
    # a server ignores headers that it does not know (RFC 9110, 5.1)
    if UNKNOWN in (case.headers or {}):
        return False
    # no case for either side: its characters are few enough, its bytes are not
    schemas = [body.definition["schema"] for body in case.operation.body]
    return not any(too_long(case.body, schema) for schema in schemas)


@schemathesis.hook
def before_call(context, case, kwargs):
    # 1.0 is an integer in JSON, but a query is text: what a body had is written there as people write it
    for name, value in (case.query or {}).items():
        if isinstance(value, float) and value.is_integer():
            case.query[name] = int(value)
