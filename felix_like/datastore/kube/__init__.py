"""What the Kubernetes API says, where there is one: access, raw HTTP, an informer. Importing it loads no HTTP
library; making a KubeClient does."""
