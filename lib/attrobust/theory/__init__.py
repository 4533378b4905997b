"""The theory of notebooks 02, 06 and 07 in float64, one file a chain: formula, trial on random cases, counterexample.

tally, draws                    verdicts on tables of cases; random networks and rows
duality, sharing                P1 to P3 and P7, moving pixels is moving the first layer; P4, shared weights
path_norm, penalty              P5, P11, P12, two layers of ReLU; P6, what regularisers punish
stability, descent              P8, where SGD can stay; P9, gradients there
modified_loss                   P10, what a finite step minimises
turning, certificates           P13, the angle of a map; P14, what it certifies about similarities
traps, smoothing, blind         P15 to P17; P18, averaged maps; P19, what flatness does not see
entropy, ranks                  P20, P22 to P26, softmax rows; P21 and P32, what no kernel changes
kernels                         P27 to P31, rows that need not sum to one
"""
