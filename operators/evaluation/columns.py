"""What each column of a result is called in front of people."""

from __future__ import annotations

from typing import NamedTuple


class Column(NamedTuple):
    """`factor` and `decimals` are for printing."""

    label: str
    unit: str = ""
    decimals: int = 2
    factor: float = 1.0
    meaning: str = ""


COLUMNS: dict[str, Column] = {
    "si_sdri_db": Column(
        "SI-SDR improvement", "dB", 2, 1.0, "SI-SDR of the estimate less that of the untouched mixture"
    ),
    "si_sdr_db": Column("SI-SDR", "dB", 2, 1.0, "scale-invariant signal-to-distortion ratio against the true target"),
    "obeyed": Column(
        "Prompt obeyed", "%", 0, 100.0, "items whose estimate is nearer to the sound asked for than to the rest"
    ),
    "sdri_db": Column("SDR improvement", "dB", 2, 1.0, "SDR of the estimate less that of the untouched mixture"),
    "sdr_db": Column("SDR", "dB", 2, 1.0, "BSS Eval's signal-to-distortion ratio, 512 taps, over the whole item"),
    "judge_overall": Column("Judge, overall", "1 to 5", 2, 1.0, "the SAM-Audio judge's opinion; needs no truth"),
    "judge_recall": Column("Judge, recall", "1 to 5", 2, 1.0, "is all of the sound asked for there"),
    "judge_precision": Column("Judge, precision", "1 to 5", 2, 1.0, "is nothing else there"),
    "judge_faithfulness": Column("Judge, faithfulness", "1 to 5", 2, 1.0, "does it sound as in the recording"),
    "clap": Column("CLAP", "cosine", 3, 1.0, "likeness of sound and description"),
    "aesthetics_ce": Column("Content enjoyment", "1 to 10", 2, 1.0, "Audiobox aesthetics"),
    "aesthetics_cu": Column("Content usefulness", "1 to 10", 2, 1.0, "Audiobox aesthetics"),
    "aesthetics_pc": Column("Production complexity", "1 to 10", 2, 1.0, "Audiobox aesthetics; lower is simpler"),
    "aesthetics_pq": Column("Production quality", "1 to 10", 2, 1.0, "Audiobox aesthetics"),
    "dnsmos_ovrl": Column("DNSMOS, overall", "1 to 5", 2, 1.0, "predicted opinion of listeners on speech (P.835)"),
    "dnsmos_sig": Column("DNSMOS, signal", "1 to 5", 2, 1.0, "the speech itself (P.835)"),
    "dnsmos_bak": Column("DNSMOS, background", "1 to 5", 2, 1.0, "what is left of the background (P.835)"),
    "dnsmos_p808": Column("DNSMOS, P.808", "1 to 5", 2, 1.0, "predicted opinion of listeners on speech (P.808)"),
    "imagebind": Column("ImageBind", "cosine", 3, 1.0, "likeness of sound and masked video"),
}


def column(name: str) -> Column:
    return COLUMNS.get(name) or Column(name)
