"""What became of a request, kept in its own id: the answer outlives every restart, and nothing has to be stored.

Ingest is done when it is answered, so there is nothing to wait for: an id that is not one of ours was accepted too.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from typing import Final

from neptune_api.proto.google_rpc.code_pb2 import Code
from neptune_api.proto.neptune_pb.ingest.v1.ingest_pb2 import IngestCode
from neptune_api.proto.neptune_pb.ingest.v1.pub.client_pb2 import BulkRequestStatus, RequestIdList, SubmitResponse
from neptune_api.proto.neptune_pb.ingest.v1.pub.request_status_pb2 import RequestStatus

Outcome = Counter[int]
"""How many operations ended with each IngestCode."""

_ID: Final = re.compile(r"[0-9a-f]{16}((?:-[0-9]{1,3}:[0-9]{1,12})*)")
_GRPC: Final = {
    IngestCode.OK: Code.OK,
    IngestCode.PROJECT_NOT_FOUND: Code.NOT_FOUND,
    IngestCode.RUN_NOT_FOUND: Code.NOT_FOUND,
    IngestCode.RUN_FORK_PARENT_NOT_FOUND: Code.NOT_FOUND,
    IngestCode.RUN_DUPLICATE: Code.ALREADY_EXISTS,
    IngestCode.RUN_CONFLICTING: Code.ALREADY_EXISTS,
    IngestCode.SERIES_POINT_DUPLICATE: Code.ALREADY_EXISTS,
    IngestCode.FIELD_TYPE_CONFLICTING: Code.FAILED_PRECONDITION,
}


def submitted(outcome: Outcome) -> SubmitResponse:
    """The answer to a request that ended so."""
    counts = "".join(f"-{code}:{count}" for code, count in sorted(outcome.items()) if count > 0)
    request_id = secrets.token_hex(8) + counts
    return SubmitResponse(request_id=request_id, request_ids=[request_id])


def statuses(wanted: RequestIdList) -> BulkRequestStatus:
    """The status of each request, in the order they were asked for."""
    return BulkRequestStatus(statuses=[_status(item.value) for item in wanted.ids])


def _status(request_id: str) -> RequestStatus:
    match = _ID.fullmatch(request_id)
    counts = [item.split(":") for item in match[1].split("-")[1:]] if match is not None else []
    return RequestStatus(
        code_by_count=[
            RequestStatus.CodeByCount(
                code=_GRPC.get(int(code), Code.INVALID_ARGUMENT), count=int(count), detail=int(code)
            )
            for code, count in counts or [("0", "1")]
        ]
    )
