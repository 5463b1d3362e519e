"""The private names of TensorFlow and Keras that we cannot avoid, as functions named by purpose.

Everything else in tfdp uses public names. Each function says what it stands for and why there
is no public way; tried with TensorFlow 2.20 and 2.21, Keras 3.13.2 to 3.15.1.
"""
