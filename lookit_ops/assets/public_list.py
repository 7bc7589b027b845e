"""The asset `discoverable_studies`: the list that the public page shows, as JSON in the bucket."""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

from collections.abc import Mapping
from typing import Any

import dagster as dg

from domain.escaping import markdown_text
from lookit_ops.assets.experiments import experiment_deployment, studies_asset
from lookit_ops.maintenance.public_list import KEY, PublicList, refresh_public_list
from lookit_ops.run_tags import OWNERS
from lookit_ops.services import Services

SHOWN_AT_MOST = 50


def facts(services: Services, written: PublicList) -> Mapping[str, Any]:
    """What the asset's page tells of the list."""
    shown = "\n".join(f"1. {markdown_text(name)}" for name in written.names[:SHOWN_AT_MOST])
    more = len(written.names) - SHOWN_AT_MOST
    return {
        "studies": len(written.names),
        "names": dg.MetadataValue.md(shown + (f"\n\n… and {more} more" if more > 0 else "")),
        "bucket": services.bucket.name,
        "key": KEY,
        "generation": written.generation,
    }


@dg.asset(
    name="discoverable_studies",
    description="The list of the public page: active, discoverable, deployed. Kept up to date by itself; materialize it"
    " to have it compared with the database at once.",
    deps=[studies_asset, experiment_deployment],
    group_name="public_list",
    kinds={"json"},
    owners=OWNERS,
)
def discoverable_studies_asset(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[Services]
) -> dg.MaterializeResult:
    written = refresh_public_list(services)
    context.log.info("the list was rewritten" if written.rewritten else "the list was up to date already")
    return dg.MaterializeResult(metadata=facts(services, written))
