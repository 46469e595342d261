"""How a candidate is judged: data, networks, quantizers, distillation and the metric. No Ray."""
