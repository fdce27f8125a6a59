"""Building, training and running models."""

from .chat import Around, Chat, EncodedSet, Encoding
from .checkpoints import Checkpoint, CheckpointError, CheckpointWarning
from .classifiers import MODELS, ClassifierSpec, LeNet, ModelSpec, ResNet18, SmallCNN, ViT
from .diffusion import (
    DIFFUSION_MODELS,
    ClassConditional,
    ClassToImage,
    Diffusion,
    StableDiffusion,
    TextConditional,
    TextToImage,
)
from .gradients import sample_gradients
from .inference import Outputs, predict
from .language import LANGUAGE_MODELS, CausalLM, SmolLM2, TinyLlama
from .sentences import MINILM, SentenceEncoder
from .training import (
    NotFiniteError,
    Recipe,
    TrainConfig,
    TrainingError,
    default_device,
    device_of,
    shuffled_epochs,
    to,
    train,
)
from .vision import (
    MULTIMODAL_MODELS,
    EncodedVisualSet,
    ImageTransform,
    Llava,
    SeeingRecipe,
    TinyLlava,
    VisionChat,
    VisualEncoding,
    learn_to_see,
    vocabulary_of,
)

__all__ = [
    "MULTIMODAL_MODELS",
    "EncodedVisualSet",
    "ImageTransform",
    "Llava",
    "SeeingRecipe",
    "TinyLlava",
    "learn_to_see",
    "VisionChat",
    "VisualEncoding",
    "vocabulary_of",
    "Around",
    "Checkpoint",
    "CheckpointError",
    "CheckpointWarning",
    "DIFFUSION_MODELS",
    "ClassConditional",
    "ClassToImage",
    "Diffusion",
    "StableDiffusion",
    "TextConditional",
    "TextToImage",
    "LANGUAGE_MODELS",
    "MINILM",
    "MODELS",
    "CausalLM",
    "Chat",
    "ClassifierSpec",
    "EncodedSet",
    "Encoding",
    "LeNet",
    "ModelSpec",
    "Outputs",
    "Recipe",
    "ResNet18",
    "SentenceEncoder",
    "SmallCNN",
    "SmolLM2",
    "TinyLlama",
    "TrainConfig",
    "NotFiniteError",
    "TrainingError",
    "ViT",
    "default_device",
    "device_of",
    "predict",
    "sample_gradients",
    "shuffled_epochs",
    "to",
    "train",
]
