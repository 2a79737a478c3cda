"""The three swagger documents that the 2.x client builds its calls from, made of the tables in ``contract``.

The client ships no description of the protocol: it fetches these documents and lets bravado make its methods from them.
Only what it uses is described. bravado resolves ``client.api.<operationId>`` by the first segment of the path where
operations carry no tags, and takes the address that the document came from where no host is named: neither is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

BACKEND: Final = "backend"
LEADERBOARD: Final = "leaderboard"
ARTIFACTS: Final = "artifacts"

SERVICES: Final = (BACKEND, LEADERBOARD, ARTIFACTS)


@dataclass(frozen=True)
class Operation:
    """One call: its name, where it is served, its parameters (``name[:kind]``, divided by spaces) and its reply."""

    name: str
    service: str
    method: str
    path: str
    parameters: str = ""
    reply: str = ""


# name, method, path under /api/<service>/v1 [: parameters] [-> reply]. Kinds of parameters: integer, number, header,
# list (repeated in the query), body (as it is) and body=<definition> (where dates are in it); without one, a string.
_BACKEND: Final = """
getClientConfig GET /clients/config : X-Neptune-Api-Token:header alpha -> ClientConfig
exchangeApiToken GET /authorization/oauth-token : X-Neptune-Api-Token:header -> Tokens
getProject GET /projects/get : projectIdentifier -> Project
listProjects GET /projects : \
    organizationIdentifier userRelation searchTerm projectIds:list sortBy:list sortDirection:list \
    limit:integer offset:integer -> Projects
createProject POST /projects : projectToCreate:body -> Project
deleteProject DELETE /projects : projectIdentifier
listOrganizations GET /myOrganizations -> [Organization]
"""

_LEADERBOARD: Final = """
getExperiment GET /experiments : experimentId -> Experiment
createExperiment POST /experiments : \
    experimentCreationParams:body=ExperimentCreation X-Neptune-CliVersion:header -> Experiment
trashExperiments POST /experiments/trash : projectIdentifier experimentIdentifiers:body -> Updated
deleteExperiments POST /experiments/trash/delete : projectIdentifier experimentIdentifiers:body -> Updated
deleteAllExperiments POST /experiments/trash/deleteAll : projectIdentifier -> Updated
ping POST /attributes/ping : experimentId
getExperimentAttributes GET /attributes : experimentId -> Attributes
getFloatAttribute GET /attributes/floats : experimentId attribute -> FloatProperties
getIntAttribute GET /attributes/integers : experimentId attribute -> IntProperties
getBoolAttribute GET /attributes/booleans : experimentId attribute -> BoolProperties
getStringAttribute GET /attributes/strings : experimentId attribute -> StringProperties
getDatetimeAttribute GET /attributes/datetimes : experimentId attribute -> DatetimeProperties
getFileAttribute GET /attributes/files : experimentId attribute -> FileProperties
getFloatSeriesAttribute GET /attributes/floatSeries : experimentId attribute -> FloatSeriesProperties
getStringSeriesAttribute GET /attributes/stringSeries : experimentId attribute -> StringSeriesProperties
getStringSetAttribute GET /attributes/stringSets : experimentId attribute -> StringSetProperties
getArtifactAttribute GET /attributes/artifacts : experimentId attribute -> ArtifactProperties
getFloatSeriesValues GET /attributes/series/float : \
    experimentId attribute limit:integer offset:integer skipToStep:number -> FloatSeriesValues
getStringSeriesValues GET /attributes/series/string : \
    experimentId attribute limit:integer offset:integer skipToStep:number -> StringSeriesValues
getImageSeriesValues GET /attributes/series/image : \
    experimentId attribute limit:integer offset:integer skipToStep:number -> ImageSeriesValues
getImageSeriesValue GET /attributes/series/image/single : experimentId attribute index:integer -> bytes
downloadAttribute GET /attributes/download : experimentId attribute -> bytes
prepareForDownloadFileSetAttributeZip POST /attributes/downloadFileSetZipRequest : \
    experimentId attribute -> DownloadRequest
getDownloadPrepareRequest GET /download/downloadRequest : id -> DownloadRequest
lsFileSetAttribute GET /attributes/ls : experimentId attribute path -> [FileEntry]
searchLeaderboardEntries POST /leaderboard/entries/search : projectIdentifier type:list params:body -> Entries
searchLeaderboardAttributes POST /leaderboard/attributes/search : \
    projectIdentifier type:list search params:body -> Definitions
executeOperations POST /attributes/operations : experimentId operations:body -> [Error]
fileAtomUpload POST /attributes/storage/file/upload : experimentIdentifier attribute ext -> Errors
fileAtomMultipartUploadStart POST /attributes/storage/file/upload/start : \
    experimentIdentifier attribute ext totalLength:integer -> UploadStarted
fileAtomMultipartUploadPart POST /attributes/storage/file/upload/part : \
    experimentIdentifier attribute uploadId uploadPartIdx:integer -> Errors
fileAtomMultipartUploadFinish POST /attributes/storage/file/upload/finish : \
    experimentIdentifier attribute uploadId -> Errors
fileSetFileUpload POST /attributes/storage/fileset/upload : experimentIdentifier attribute subPath -> Errors
fileSetFileMultipartUploadStart POST /attributes/storage/fileset/upload/start : \
    experimentIdentifier attribute subPath totalLength:integer -> UploadStarted
fileSetFileMultipartUploadPart POST /attributes/storage/fileset/upload/part : \
    experimentIdentifier attribute subPath uploadId uploadPartIdx:integer -> Errors
fileSetFileMultipartUploadFinish POST /attributes/storage/fileset/upload/finish : \
    experimentIdentifier attribute subPath uploadId -> Errors
uploadFileSetAttributeTar POST /attributes/uploadFileSetTar : experimentId attribute reset -> Errors
"""

_ARTIFACTS: Final = """
createNewArtifact PUT /artifact : \
    projectIdentifier hash parentIdentifier size:integer X-Neptune-Artifact-Api-Version:header -> Artifact
createArtifactVersion POST /artifact : \
    projectIdentifier hash parentIdentifier artifactFilesDTO:body X-Neptune-Artifact-Api-Version:header -> Artifact
uploadArtifactFilesMetadata PUT /artifact/files : \
    projectIdentifier hash artifactFilesDTO:body X-Neptune-Artifact-Api-Version:header -> Artifact
listArtifactFiles GET /artifact/files : projectIdentifier hash X-Neptune-Artifact-Api-Version:header -> ArtifactFiles
"""


def _operations(service: str, table: str) -> tuple[Operation, ...]:
    operations = []
    for line in table.strip().splitlines():
        call, _, reply = line.partition(" -> ")
        address, _, parameters = call.partition(" : ")
        name, method, path = address.split()
        operations.append(
            Operation(name, service, method, f"/api/{service}/v1{path}", " ".join(parameters.split()), reply)
        )
    return tuple(operations)


OPERATIONS: Final = (
    *_operations(BACKEND, _BACKEND),
    *_operations(LEADERBOARD, _LEADERBOARD),
    *_operations(ARTIFACTS, _ARTIFACTS),
)

_VALUES: Final = "attributeName attributeType "

DEFINITIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ClientConfig": "apiUrl applicationUrl pyLibVersions:LibVersions multiPartUpload:MultiPartUpload "
        "artifacts:ArtifactsConfig sysNameSetByBackend:boolean",
        "LibVersions": "minRecommendedVersion minCompatibleVersion maxCompatibleVersion",
        "MultiPartUpload": "enabled:boolean minChunkSize:integer maxChunkSize:integer maxChunkCount:integer "
        "maxSinglePartSize:integer",
        "ArtifactsConfig": "enabled:boolean apiVersion:integer",
        "Tokens": "accessToken refreshToken username",
        "Project": "id name organizationName organizationId projectKey description visibility version:integer",
        "Projects": "entries:[Project] matchingItemCount:integer totalItemCount:integer",
        "Organization": "id name",
        "Experiment": "id organizationName organizationId projectId projectName shortId name trashed:boolean type",
        "ExperimentCreation": "projectIdentifier parentId type cliVersion customId key notebookId checkpointId "
        "gitInfo:GitInfo",
        "GitInfo": "commit:Commit currentBranch remotes:[string] repositoryDirty:boolean",
        "Commit": "commitId message authorName authorEmail commitDate:datetime",
        "Updated": "errors:[string] updatedExperimentIdentifiers:[string]",
        "Error": "errorDescription",
        "Errors": "errors:[Error]",
        "UploadStarted": "uploadId errors:[Error]",
        "Attributes": "attributes:[Attribute]",
        "Attribute": "name type floatProperties:FloatProperties intProperties:IntProperties "
        "boolProperties:BoolProperties stringProperties:StringProperties datetimeProperties:DatetimeProperties "
        "fileProperties:FileProperties fileSetProperties:FileSetProperties "
        "floatSeriesProperties:FloatSeriesProperties stringSeriesProperties:StringSeriesProperties "
        "imageSeriesProperties:ImageSeriesProperties stringSetProperties:StringSetProperties "
        "gitRefProperties:GitRefProperties experimentStateProperties:StringProperties "
        "notebookRefProperties:NotebookRefProperties artifactProperties:ArtifactProperties",
        "FloatProperties": _VALUES + "value:number",
        "IntProperties": _VALUES + "value:integer",
        "BoolProperties": _VALUES + "value:boolean",
        "StringProperties": _VALUES + "value",
        "DatetimeProperties": _VALUES + "value:datetime",
        "FileProperties": _VALUES + "name ext size:integer",
        "FileSetProperties": _VALUES + "size:integer",
        "FloatSeriesProperties": _VALUES + "last:number lastStep:number min:number max:number average:number "
        "variance:number config:FloatSeriesConfig",
        "FloatSeriesConfig": "min:number max:number unit",
        "StringSeriesProperties": _VALUES + "last lastStep:number",
        "ImageSeriesProperties": _VALUES + "lastStep:number",
        "StringSetProperties": _VALUES + "values:[string]",
        "GitRefProperties": _VALUES + "commit:Commit currentBranch remotes:[string] repositoryDirty:boolean",
        "NotebookRefProperties": _VALUES + "notebookName",
        "ArtifactProperties": _VALUES + "hash",
        "FloatSeriesValues": "totalItemCount:integer values:[FloatPoint]",
        "FloatPoint": "timestampMillis:integer step:number value:number",
        "StringSeriesValues": "totalItemCount:integer values:[StringPoint]",
        "StringPoint": "timestampMillis:integer step:number value",
        "ImageSeriesValues": "totalItemCount:integer",
        "DownloadRequest": "id downloadUrl",
        "FileEntry": "name fileType size:integer mtime:datetime",
        "Entries": "matchingItemCount:integer totalItemCount:integer entries:[Entry]",
        "Entry": "experimentId type attributes:[Attribute]",
        "Definitions": "entries:[Definition]",
        "Definition": "name type",
        "Artifact": "artifactHash receivedMetadata:boolean size:integer",
        "ArtifactFiles": "files:[ArtifactFile]",
        "ArtifactFile": "filePath fileHash type size:integer metadata:[Metadatum]",
        "Metadatum": "key value",
    }
)


_TYPES: Final[Mapping[str, dict[str, Any]]] = MappingProxyType(
    {
        "string": {"type": "string"},
        "integer": {"type": "integer", "format": "int64"},
        # `double` is what makes bravado turn a JSON 1 into 1.0.
        "number": {"type": "number", "format": "double"},
        "boolean": {"type": "boolean"},
        "datetime": {"type": "string", "format": "date-time"},
        "bytes": {"type": "file"},
    }
)


def _schema(kind: str) -> dict[str, Any]:
    if kind.startswith("["):
        return {"type": "array", "items": _schema(kind[1:-1])}
    if kind in _TYPES:
        return dict(_TYPES[kind])
    return {"$ref": f"#/definitions/{kind}"}


def _parameter(text: str) -> dict[str, Any]:
    name, _, kind = text.partition(":")
    if kind.startswith("body"):
        _, _, definition = kind.partition("=")
        # An empty schema lets a body through as it is; one that holds dates needs to say so.
        return {"name": name, "in": "body", "schema": _schema(definition) if definition else {}}
    if kind == "header":
        return {"name": name, "in": "header", "type": "string"}
    if kind == "list":
        items = {"type": "string"}
        return {"name": name, "in": "query", "type": "array", "items": items, "collectionFormat": "multi"}
    return {"name": name, "in": "query", **_TYPES[kind or "string"]}


def _definition(text: str) -> dict[str, Any]:
    fields = (field.partition(":") for field in text.split())
    return {"type": "object", "properties": {name: _schema(kind or "string") for name, _, kind in fields}}


def document(service: str) -> dict[str, Any]:
    """Return the swagger document of one service (``backend``, ``leaderboard``, ``artifacts``), made anew.

    Raises KeyError where there is no such service.
    """
    if service not in SERVICES:
        raise KeyError(service)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        if operation.service != service:
            continue
        reply: dict[str, Any] = {"description": "OK"}
        if operation.reply:
            reply["schema"] = _schema(operation.reply)
        paths.setdefault(operation.path, {})[operation.method.lower()] = {
            "operationId": operation.name,
            "parameters": [_parameter(text) for text in operation.parameters.split()],
            "responses": {
                "200": reply,
                "400": {"description": "Bad request", "schema": _schema("Rejection")},
                "default": {"description": "Refused"},
            },
        }
    definitions = {name: _definition(text) for name, text in DEFINITIONS.items()}
    # What the management calls read of a refused request.
    definitions["Rejection"] = {"type": "object", "properties": {"validationErrors": {"type": "array", "items": {}}}}
    return {
        "swagger": "2.0",
        "info": {"title": f"Neptune {service}", "version": "1"},
        "basePath": "/",
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "paths": paths,
        "definitions": definitions,
    }
