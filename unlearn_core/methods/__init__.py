"""Unlearning methods, and continual ones: one file a paper, and the baselines that papers share.

Every `Method` in a module of this package is exported here under its class name and listed in
`METHODS` under its ``name``; so is every `ContinualMethod`, in `CONTINUAL`. `register` adds others.
"""

from __future__ import annotations

from typing import TypeVar

from ..registry import Plugins, Table
from .base import NEEDS, Method
from .baselines.ablating_concepts import AblatingConcepts
from .baselines.amnesiac import Amnesiac
from .baselines.bad_teacher import BadTeacher
from .baselines.boundary import BoundaryExpand, BoundaryShrink
from .baselines.concept_relabel import ConceptRelabel
from .baselines.dpo import DPO, DPORetain, ReferenceFreeDPO, SimPO
from .baselines.esd import ESD
from .baselines.ewc_lora import EWCLoRA
from .baselines.fine_tune import FineTune
from .baselines.fisher_forgetting import FisherForgetting
from .baselines.forget_me_not import ForgetMeNot
from .baselines.grad_diff import GradDiff
from .baselines.gradient_ascent import GradientAscent
from .baselines.influence import InfluenceUnlearning
from .baselines.influence_cg import InfluenceCG
from .baselines.joint import Joint
from .baselines.kl_minimization import KLMinimization
from .baselines.l1_sparse import L1Sparse
from .baselines.last_layers import CFk, EUk
from .baselines.llmu import LLMU
from .baselines.lota import LoTA
from .baselines.mace import MACE
from .baselines.npo import NPO, NPORetain, SimNPO
from .baselines.o_lora import OLoRA
from .baselines.preference_optimization import Mismatch, PreferenceOptimization
from .baselines.prompting import ICUL, FilterPrompting, OutputFiltering, Prompting
from .baselines.random_label import RandomLabel
from .baselines.replay import Replay
from .baselines.retrain import Retrain
from .baselines.rmu import RMU
from .baselines.scrub import Scrub
from .baselines.selection import AbsoluteSelection, RandomSelection
from .baselines.sequential import SequentialFullTuning, SequentialLoRA
from .baselines.sld import SLD
from .baselines.task_vector import TaskVector
from .baselines.uce import UCE
from .baselines.unsir import UNSIR
from .baselines.whp import WHP
from .continual import ContinualMethod, Stage
from .contract import ContractError, check_method
from .flat import FLAT, FixedWeights, FLATRetain
from .forget_pairs import Paired
from .guard import GUARD
from .iau import IAU
from .realera import RealEra
from .safeeraser import PromptDecouple
from .salun import Masked, SalUn, SalUnSoft
from .salun_generation import SalUnGeneration
from .sefe import RegLoRA
from .ssd import SSD
from .worst_case import ByLoss, Selection, WorstCase
from .worst_prompts import LowestLossPrompts, RandomPrompts, WorstPrompts

__all__ = [
    "AblatingConcepts",
    "AbsoluteSelection",
    "Amnesiac",
    "BadTeacher",
    "BoundaryExpand",
    "BoundaryShrink",
    "ByLoss",
    "CFk",
    "CONTINUAL",
    "ConceptRelabel",
    "ContinualMethod",
    "ContractError",
    "DPO",
    "DPORetain",
    "ESD",
    "EUk",
    "EWCLoRA",
    "FLAT",
    "FLATRetain",
    "FilterPrompting",
    "FineTune",
    "FisherForgetting",
    "FixedWeights",
    "ForgetMeNot",
    "GUARD",
    "GradDiff",
    "GradientAscent",
    "IAU",
    "ICUL",
    "InfluenceCG",
    "InfluenceUnlearning",
    "Joint",
    "KLMinimization",
    "L1Sparse",
    "LLMU",
    "LoTA",
    "LowestLossPrompts",
    "MACE",
    "METHODS",
    "Masked",
    "Method",
    "Mismatch",
    "NEEDS",
    "NPO",
    "NPORetain",
    "OLoRA",
    "OutputFiltering",
    "Paired",
    "PreferenceOptimization",
    "PromptDecouple",
    "Prompting",
    "RMU",
    "RandomLabel",
    "RandomPrompts",
    "RandomSelection",
    "RealEra",
    "ReferenceFreeDPO",
    "RegLoRA",
    "Replay",
    "Retrain",
    "SLD",
    "SSD",
    "SalUn",
    "SalUnGeneration",
    "SalUnSoft",
    "Scrub",
    "Selection",
    "SequentialFullTuning",
    "SequentialLoRA",
    "SimNPO",
    "SimPO",
    "Stage",
    "TaskVector",
    "UCE",
    "UNSIR",
    "WHP",
    "WorstCase",
    "WorstPrompts",
    "check_method",
    "register",
]

Cls = TypeVar("Cls", bound=type)


def register(method: Cls) -> Cls:
    """Make a method of one's own known by its ``name``, as a YAML names it. It is given back, so this
    may decorate the class.

    An installed package need not call it: its entry points of the group ``unlearn_core.methods``
    are registered when they are looked for.

    Raises
    ------
    TypeError
        It is no class of methods.
    ValueError
        Another method has its ``name``, or its class's: rows would be mistaken for each other.
    """
    for base, table in ((Method, METHODS), (ContinualMethod, CONTINUAL)):
        if isinstance(method, type) and issubclass(method, base) and method is not base:
            table.add(method.name, method)
            return method
    raise TypeError(
        f"what is registered is a subclass of Method or ContinualMethod, not {method!r}"
    )


_others = Plugins("unlearn_core.methods", lambda _, method: register(method))
#: Every method, by its ``name``.
METHODS: Table[type[Method]] = Table("method", _others)
#: Every method that learns tasks in a sequence, by its ``name``.
CONTINUAL: Table[type[ContinualMethod]] = Table("continual method", _others)
for _cls in [globals()[name] for name in __all__]:
    if isinstance(_cls, type) and hasattr(_cls, "name"):  # their bases have none
        register(_cls)
