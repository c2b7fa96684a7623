"""DT-DDNN: jamming of 5G found from one synchronisation signal block, by two networks.

Source: Asemian, Amini, Kantarci, Erol-Kantarci 2024, arXiv 2403.02645; 3GPP TS 38.211.
"""

from sat.methods.dt_ddnn.detector import (
    DTDDNN,
    choose_thresholds,
    detection_at_false_alarm,
    weak_records,
)
from sat.methods.dt_ddnn.features import (
    Correlation,
    dwt_features,
    epnre,
    features,
    pss_correlation,
)
from sat.methods.dt_ddnn.networks import JammingDNN, cascade_train, train
from sat.methods.dt_ddnn.sequences import gold_sequence, pbch_dmrs, pss, sss
from sat.methods.dt_ddnn.signal import (
    KINDS,
    SSBRecords,
    jammer,
    ofdm_modulate,
    rayleigh_channel,
    simulate_ssb,
    ssb_grid,
)

__all__ = [
    "DTDDNN",
    "KINDS",
    "Correlation",
    "JammingDNN",
    "SSBRecords",
    "cascade_train",
    "choose_thresholds",
    "detection_at_false_alarm",
    "dwt_features",
    "epnre",
    "features",
    "gold_sequence",
    "jammer",
    "ofdm_modulate",
    "pbch_dmrs",
    "pss",
    "pss_correlation",
    "rayleigh_channel",
    "simulate_ssb",
    "ssb_grid",
    "sss",
    "train",
    "weak_records",
]
