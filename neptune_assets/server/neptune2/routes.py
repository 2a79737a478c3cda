"""All routes of the 2.x protocol: every call of the contract, and the swagger documents made of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from starlette.routing import BaseRoute, WebSocketRoute

from neptune_assets.schema import AttributeType
from neptune_assets.server.endpoints import Endpoint, Handler
from neptune_assets.server.neptune2 import artifacts, downloads, experiments, readings, session, signals, uploading
from neptune_assets.server.neptune2.contract import OPERATIONS, SERVICES

SHARED: Final = frozenset({"getClientConfig", "exchangeApiToken", "getProject", "listProjects", "createProject"})
"""Calls that clients of both generations make: the routes of 3.x serve them."""

HANDLERS: Final[Mapping[str, Handler]] = MappingProxyType(
    {
        "deleteProject": session.delete_project,
        "listOrganizations": session.list_organizations,
        "getExperiment": experiments.get_experiment,
        "createExperiment": experiments.create_experiment,
        "trashExperiments": experiments.trash_experiments,
        "deleteExperiments": experiments.delete_experiments,
        "deleteAllExperiments": experiments.delete_all_experiments,
        "ping": experiments.ping,
        "executeOperations": experiments.execute_operations,
        "getExperimentAttributes": readings.get_attributes,
        "getFloatAttribute": readings.get_attribute(AttributeType.FLOAT),
        "getIntAttribute": readings.get_attribute(AttributeType.INT),
        "getBoolAttribute": readings.get_attribute(AttributeType.BOOL),
        "getStringAttribute": readings.get_attribute(AttributeType.STRING),
        "getDatetimeAttribute": readings.get_attribute(AttributeType.DATETIME),
        "getFileAttribute": readings.get_attribute(AttributeType.FILE),
        "getFloatSeriesAttribute": readings.get_attribute(AttributeType.FLOAT_SERIES),
        "getStringSeriesAttribute": readings.get_attribute(AttributeType.STRING_SERIES),
        "getStringSetAttribute": readings.get_attribute(AttributeType.STRING_SET),
        "getArtifactAttribute": readings.get_attribute(AttributeType.ARTIFACT),
        "getFloatSeriesValues": readings.get_float_series_values,
        "getStringSeriesValues": readings.get_string_series_values,
        "getImageSeriesValues": readings.get_image_series_values,
        "getImageSeriesValue": downloads.get_image,
        "downloadAttribute": downloads.download_attribute,
        "prepareForDownloadFileSetAttributeZip": downloads.prepare_zip,
        "getDownloadPrepareRequest": downloads.get_prepared_zip,
        "lsFileSetAttribute": downloads.list_file_set,
        "searchLeaderboardEntries": readings.search_entries,
        "searchLeaderboardAttributes": readings.search_attributes,
        "fileAtomUpload": uploading.upload_file,
        "fileAtomMultipartUploadStart": uploading.start_upload,
        "fileAtomMultipartUploadPart": uploading.upload_part,
        "fileAtomMultipartUploadFinish": uploading.finish_upload,
        "fileSetFileUpload": uploading.upload_member,
        "fileSetFileMultipartUploadStart": uploading.start_upload,
        "fileSetFileMultipartUploadPart": uploading.upload_part,
        "fileSetFileMultipartUploadFinish": uploading.finish_upload,
        "uploadFileSetAttributeTar": uploading.upload_archive,
        "createNewArtifact": artifacts.create_artifact,
        "createArtifactVersion": artifacts.create_version,
        "uploadArtifactFilesMetadata": artifacts.upload_files,
        "listArtifactFiles": artifacts.list_files,
    }
)

_READS_BY_POST: Final = frozenset(
    {"searchLeaderboardEntries", "searchLeaderboardAttributes", "prepareForDownloadFileSetAttributeZip"}
)


def routes() -> list[BaseRoute]:
    """Swagger documents, projects, runs, attributes, tables, operations, uploads, downloads, artifacts."""
    return [
        *(
            Endpoint(f"/api/{service}/swagger.json", session.swagger(service), ("GET",), public=True).route()
            for service in SERVICES
        ),
        *(
            Endpoint(
                operation.path,
                HANDLERS[operation.name],
                (operation.method,),
                writes=operation.method != "GET" and operation.name not in _READS_BY_POST,
                name=operation.name,
            ).route()
            for operation in OPERATIONS
            if operation.name not in SHARED
        ),
        Endpoint(downloads.ZIP_PATH, downloads.download_zip, ("GET",)).route(),
        WebSocketRoute("/api/notifications/v1/runs/{project}/{run}/signal", signals.listen),
    ]
