"""The Pareto report: figure data first, drawing second."""
