"""Which laws do not hold for fedsim's own strategies as they are built without arguments, by design, and why."""

from __future__ import annotations

ITS_OWN = "asks whom it picks, not whom the schedule chose"
MEETS = "who meets whom is drawn by number"
ELSEWHERE = "starts from another model than it is given"

KEPT = "clients keep a part to themselves, which no move of the server's reaches; with nothing kept the law holds"

OWN: dict[str, dict[str, str]] = {
    "BufferedGossip": {
        "absent_clients_data_do_not_matter": "who does not train in a tick is reached all the same, and may average",
        "a_wrapper_around_it_changes_nothing": "what lies in the buffers is not moved along",
    },
    "ClientCurriculum": {
        "relabelling_clients_relabels_the_state": "breaks ties by number",
        "absent_clients_data_do_not_matter": ITS_OWN,
        "who_does_not_answer_was_absent": ITS_OWN,
    },
    "ClusterFedVARP": {
        "relabelling_clients_relabels_the_state": "makes its clusters by number; given ones move along",
    },
    "F3AST": {
        "relabelling_clients_relabels_the_state": "breaks ties by number",
        "absent_clients_data_do_not_matter": ITS_OWN,
        "who_does_not_answer_was_absent": ITS_OWN,
    },
    "FedAWE": {"a_wrapper_around_it_changes_nothing": "clients start from their own models, not from x"},
    "GainCorrection": {"is_well_formed": ELSEWHERE},
    "MaxNormSync": {"is_well_formed": ELSEWHERE},
    "FedRep": {"a_wrapper_around_it_changes_nothing": KEPT},
    "Personal": {"a_wrapper_around_it_changes_nothing": KEPT},
    "RandomWalk": {"relabelling_clients_relabels_the_state": MEETS},
    "RelaySGD": {"relabelling_clients_relabels_the_state": "its messages are listed by edge"},
    "SRRW": {"relabelling_clients_relabels_the_state": MEETS},
}
