"""Every call of the 2.x protocol that is served: name, address, parameters and reply, in compact tables.

The swagger documents (``swagger``) are made of these tables and ``routes`` mounts them: what is described to the client
and what is served cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

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
