from typing import Any

def use(create: int, decompress: int, destroy: int, digest: int, /) -> None: ...
def copy(
    sources: list[Any],
    row: int,
    edges: Any,
    starts: Any,
    counts: Any,
    places: Any,
    out: Any,
    /,
) -> None: ...
def decode(
    file: Any,
    header: bytes,
    block: int,
    begins: Any,
    sizes: Any,
    raw: Any,
    checks: Any,
    is_checked: bool,
    froms: Any,
    counts: Any,
    places: Any,
    edges: Any,
    block_edges: Any,
    out: Any,
    state: Any,
    stored: Any,
    decoded: Any,
    /,
) -> bool: ...
def decode_run(
    file: Any,
    header: bytes,
    block: int,
    edges: Any,
    checks: Any,
    is_checked: bool,
    offset: int,
    first: int,
    count: int,
    at: int,
    out: Any,
    stored: Any,
    decoded: Any,
    /,
) -> bool: ...
