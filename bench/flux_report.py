"""What bench.flux measured, as a table and as a picture."""

import math
from pathlib import Path


def table(result: dict) -> str:
    """Markdown, a row for each stage."""
    rows = ["| stage | GB at most | estimated | seconds | seconds at the device's peak |", "|---|---|---|---|---|"]
    for name, held in result["stage_bytes"].items():
        numbers = [held / 1e9, result["estimate"].get(name, math.nan) / 1e9]
        if "stage_seconds" in result:
            floor = result["floors"].get(name, {"seconds": math.nan})
            numbers += [result["stage_seconds"][name], floor["seconds"]]
        shown = ["" if math.isnan(number) else f"{number:.4f}" for number in numbers]
        rows.append(f"| {' | '.join([name, *shown, *[''] * (4 - len(shown))])} |")
    return "\n".join(rows)


def draw(result: dict, file: Path):
    """Seconds of each stage beside the least possible, and the roofline that they lie under."""
    from matplotlib.figure import Figure

    floors = {name: floor for name, floor in result["floors"].items() if name != "device"}
    seconds = result["stage_seconds"]
    peak = result["floors"]["device"]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    bars, roof = figure.subplots(1, 2)
    bars.barh(list(seconds), list(seconds.values()), color="#b0c4de", label="measured")
    bars.barh(list(floors), [f["seconds"] for f in floors.values()], height=0.3, color="#27496d", label="FLOPs at peak")
    bars.set(xlabel="seconds of an update", title=f"FLUX {result['size']}, {result['base']}, {result['device']}")
    bars.legend()
    intensities = [10**e for e in range(-1, 5)]
    roof.plot(intensities, [min(peak["flops"], i * peak["bytes"]) / 1e12 for i in intensities], color="black")
    for name, floor in floors.items():
        at = floor["flops"] / floor["bytes"], floor["flops"] / seconds[name] / 1e12
        roof.plot(*at, "o")
        roof.annotate(name, at, xytext=(4, 4), textcoords="offset points")
    roof.set(xscale="log", yscale="log", xlabel="FLOP per byte moved, nothing fused", ylabel="TFLOP/s")
    figure.savefig(file, dpi=150)
