"""What a program that trains needs, in one place."""

from sat.training.optim import DeviceSgd, LossScaler
from sat.training.trainer import Trainer, TrainResult, train

__all__ = ["DeviceSgd", "LossScaler", "TrainResult", "Trainer", "train"]
