"""The services to which a run can be sent, and whether the library of one is installed.

    check_service(Service.WANDB)          # ConfigError: an export to wandb needs wandb, which is not installed here

Imports none of the libraries.
"""

from enum import StrEnum

from ray_memprof.installed import need


class Service(StrEnum):
    """Where a run can be sent; each is the name of the optional extra that brings its library."""

    WANDB = "wandb"
    MLFLOW = "mlflow"
    TENSORBOARD = "tensorboard"
    PROMETHEUS = "prometheus"


_PACKAGES = {Service.PROMETHEUS: "prometheus_client"}
"""What is imported, where it has another name than the service."""


def check_service(service: Service) -> None:
    """Refuse a service whose library is not installed.

    Raises:
        ConfigError: it is missing; the hint names the extra that brings it.
    """
    need((_PACKAGES.get(service, service.value),), f"an export to {service.value}", extra=service.value)
