"""Does MLflow answer, and do the jets arrive?"""

from __future__ import annotations

import uuid

from cluster.doctor.finding import HERE, Finding
from cluster.doctor.nodes import alive_nodes, on_each
from jbot.data.jets import CLASSES, JetData, content_fingerprint
from jbot.data.load import load_cached
from jbot.messages import first_line, without_secret

JETS = 100
"""Jets of each class that are read and sent to show that they arrive."""


def check_tracking(uri: str) -> Finding:
    """Whether MLflow answers there, and takes what is written. The experiment that is made for it is deleted again."""
    shown = without_secret(uri)
    try:
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=uri)
        client.delete_experiment(client.create_experiment(f"doctor-{uuid.uuid4().hex[:8]}"))
    except Exception as error:  # whatever MLflow, SQLAlchemy or the network raise
        says = f"{shown} fails ({type(error).__name__}: {without_secret(first_line(error))})"
        remedy = "start it, or look at its address and your rights; a study runs without it, and mirrors later"
        return Finding(what="MLflow", where=HERE, says=says, remedy=remedy, fatal=False)
    return Finding(what="MLflow", where=HERE, says=f"{shown} answers and takes runs")


def check_jets(source: str, nodes: bool) -> Finding:
    """Whether the jets can be read here, and arrive on every node as they are.

    Raises
    ------
    DataError
        For jets that cannot be used.
    """
    jets = load_cached(source, jets_per_class=dict.fromkeys(CLASSES, JETS))
    if jets is None:
        return Finding(what="jets", where=HERE, says=f"{source}: none here yet, a study gets them first")
    says = f"{jets.source}, fingerprint {jets.fingerprint[:12]}"
    if not nodes:
        return Finding(what="jets", where=HERE, says=says)
    import ray

    arrived = on_each(alive_nodes(), _fingerprint, ray.put(jets))
    wrong = [node["NodeManagerAddress"] for node, theirs in arrived if theirs != jets.fingerprint]
    remedy = "other bytes arrive than were sent: look at memory and network of these nodes" if wrong else ""
    return Finding(what="jets", where=", ".join(wrong) or "all nodes", says=says, remedy=remedy)


def _fingerprint(jets: JetData) -> str:
    return content_fingerprint(jets.particles, jets.labels, jets.jets)
