"""The strategies, one paper a file. `NAMES` is what an experiment file may name and what the law table runs over."""

from fedsim.strategies.buffered_gossip import BufferedGossip
from fedsim.strategies.cafed import CAFed
from fedsim.strategies.choco import ChocoSGD
from fedsim.strategies.client_curriculum import ClientCurriculum
from fedsim.strategies.cluster_fedvarp import ClusterFedVARP
from fedsim.strategies.d2 import D2
from fedsim.strategies.decentlam import DecentLaM
from fedsim.strategies.delta_sum import DeltaSum
from fedsim.strategies.dmsgd import DmSGD
from fedsim.strategies.dpsgd import DPSGD
from fedsim.strategies.epidemic import EpidemicLearning
from fedsim.strategies.exact_diffusion import ExactDiffusion
from fedsim.strategies.f3ast import F3AST
from fedsim.strategies.fedau import FedAU
from fedsim.strategies.fedavg import FedAvg
from fedsim.strategies.fedavg_m_vr import FedAvgMVR
from fedsim.strategies.fedavgm import FedAvgM
from fedsim.strategies.fedawe import FedAWE
from fedsim.strategies.fedcm import FedCM
from fedsim.strategies.feddyn import FedDyn
from fedsim.strategies.fednova import FedNova
from fedsim.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from fedsim.strategies.fedprox import FedProx
from fedsim.strategies.fedrep import FedRep
from fedsim.strategies.fedstale import FedStale
from fedsim.strategies.fedvarp import FedVARP
from fedsim.strategies.gain_correction import GainCorrection
from fedsim.strategies.generalized_fedavg import GeneralizedFedAvg
from fedsim.strategies.gossip_pga import GossipPGA
from fedsim.strategies.gradient_tracking import GradientTracking
from fedsim.strategies.max_norm_sync import MaxNormSync
from fedsim.strategies.mifa import MIFA
from fedsim.strategies.mime import Mime, MimeLite
from fedsim.strategies.personal import Personal
from fedsim.strategies.qg_dsgdm import QGDSGDm
from fedsim.strategies.random_walk import RandomWalk
from fedsim.strategies.relaysum import RelaySGD
from fedsim.strategies.scaffold import SCAFFOLD
from fedsim.strategies.scaffold_m import SCAFFOLDM
from fedsim.strategies.scaffold_m_vr import SCAFFOLDMVR
from fedsim.strategies.server_lr import ServerLR
from fedsim.strategies.sgp import SGP
from fedsim.strategies.srrw import SRRW
from fedsim.strategies.variance_correction import VarianceCorrection

__all__ = [
    "D2",
    "DPSGD",
    "F3AST",
    "MIFA",
    "SCAFFOLD",
    "SCAFFOLDM",
    "SCAFFOLDMVR",
    "SGP",
    "SRRW",
    "BufferedGossip",
    "CAFed",
    "ChocoSGD",
    "ClientCurriculum",
    "ClusterFedVARP",
    "DecentLaM",
    "DeltaSum",
    "DmSGD",
    "EpidemicLearning",
    "ExactDiffusion",
    "FedAU",
    "FedAWE",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedAvgMVR",
    "FedCM",
    "FedDyn",
    "FedNova",
    "FedProx",
    "FedRep",
    "FedStale",
    "FedVARP",
    "FedYogi",
    "GainCorrection",
    "GeneralizedFedAvg",
    "GossipPGA",
    "GradientTracking",
    "MaxNormSync",
    "Mime",
    "MimeLite",
    "Personal",
    "QGDSGDm",
    "RandomWalk",
    "RelaySGD",
    "ServerLR",
    "VarianceCorrection",
]

NAMES = {name: globals()[name] for name in __all__}
