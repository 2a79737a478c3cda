"""All routes of the 2.x protocol: every call of the contract, and the swagger documents made of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from starlette.routing import BaseRoute, WebSocketRoute

from neptune_assets.schema import AttributeType
from neptune_assets.server.endpoints import Endpoint, Handler
from neptune_assets.server.neptune2 import experiments, readings, session, transfers
from neptune_assets.server.neptune2.swagger import OPERATIONS, SERVICES

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
        "getImageSeriesValue": transfers.get_image,
        "downloadAttribute": transfers.download_attribute,
        "prepareForDownloadFileSetAttributeZip": transfers.prepare_zip,
        "getDownloadPrepareRequest": transfers.get_prepared_zip,
        "lsFileSetAttribute": transfers.list_file_set,
        "searchLeaderboardEntries": readings.search_entries,
        "searchLeaderboardAttributes": readings.search_attributes,
        "fileAtomUpload": transfers.upload_file,
        "fileAtomMultipartUploadStart": transfers.start_upload,
        "fileAtomMultipartUploadPart": transfers.upload_part,
        "fileAtomMultipartUploadFinish": transfers.finish_upload,
        "fileSetFileUpload": transfers.upload_member,
        "fileSetFileMultipartUploadStart": transfers.start_upload,
        "fileSetFileMultipartUploadPart": transfers.upload_part,
        "fileSetFileMultipartUploadFinish": transfers.finish_upload,
        "uploadFileSetAttributeTar": transfers.upload_archive,
        "createNewArtifact": transfers.create_artifact,
        "createArtifactVersion": transfers.create_version,
        "uploadArtifactFilesMetadata": transfers.upload_files,
        "listArtifactFiles": transfers.list_files,
    }
)

_READS_BY_POST: Final = frozenset(
    {"searchLeaderboardEntries", "searchLeaderboardAttributes", "prepareForDownloadFileSetAttributeZip"}
)


def routes() -> list[BaseRoute]:
    """Swagger documents, projects, runs, attributes, tables, operations, uploads, downloads, transfers."""
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
        Endpoint(transfers.ZIP_PATH, transfers.download_zip, ("GET",)).route(),
        WebSocketRoute("/api/notifications/v1/runs/{project}/{run}/signal", session.listen),
    ]
