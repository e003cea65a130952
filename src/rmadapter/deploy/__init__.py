"""Export a fitted model: a folder that answers as `predict` does, without this package.

cli        the commands
export     run -> folder, written whole or not at all
graph      a fitted method as one graph of ONNX, OpenVINO or torch: pixels in, probabilities out
tower      its text encoder as another graph, with the tokenizer
int8       that graph with 8-bit weights: several ways, the best chosen by its answers
parity     the exported model compared with the fitted one on the same images
runtime    the exported model's answers, by NumPy, Pillow and an engine alone
engines    what runs the graph: onnxruntime, OpenVINO, torch or LiteRT
adding     classes added to the model by name
card       README.md of the folder
push       run -> repository on the Hugging Face hub, without private details
modelcard  README.md of the repository
web        a static page around the graph
onefile    `runtime` and all it uses from this package, as one file
"""
