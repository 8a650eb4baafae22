package chart_test

import (
	"strconv"
	"strings"
)

// pod is the part of a Pod that decides what runs in it.
type pod struct {
	object
	Spec   podSpec
	Status struct {
		Phase                                    string
		ContainerStatuses, InitContainerStatuses []containerStatus
	}
}

type containerStatus struct {
	Name           string
	Ready, Started bool
}

type podSpec struct {
	Containers, InitContainers    []container
	Volumes                       []volume
	SecurityContext               securityContext
	TerminationGracePeriodSeconds int
	NodeName, ServiceAccountName  string
}

type securityContext struct {
	RunAsUser, RunAsGroup, FSGroup *int
	ReadOnlyRootFilesystem         bool
}

type container struct {
	Name, Image, WorkingDir, RestartPolicy, TerminationMessagePolicy string

	Command, Args []string
	Env           []variable
	EnvFrom       []struct {
		Prefix                  string
		SecretRef, ConfigMapRef *reference
	}
	VolumeMounts                                []mount
	Ports                                       []struct{ Name, ContainerPort jsonText }
	LivenessProbe, ReadinessProbe, StartupProbe *probe
	Resources                                   struct{ Limits map[string]string }
	SecurityContext                             securityContext
}

type variable struct {
	Name, Value string
	ValueFrom   *struct {
		SecretKeyRef, ConfigMapKeyRef *reference
		FieldRef                      *struct{ FieldPath string }
		ResourceFieldRef              *struct{ ContainerName, Resource string }
	}
}

// reference is a key of a Secret or of a ConfigMap, or the whole.
type reference struct {
	Name, Key string
	Optional  bool
}

type mount struct {
	Name, MountPath, SubPath string
	ReadOnly                 bool
}

type volume struct {
	Name      string
	EmptyDir  *struct{}
	ConfigMap *files
	Secret    *files
}

// files are a ConfigMap or a Secret as a volume.
type files struct {
	Name, SecretName string
	DefaultMode      int
	Optional         bool
	Items            []struct {
		Key, Path string
		Mode      *int
	}
}

type probe struct {
	HTTPGet *struct {
		Path, Scheme string
		Port         jsonText
	}
	Exec *struct{ Command []string }
}

// jsonText is a string or a number.
type jsonText string

func (j *jsonText) UnmarshalJSON(text []byte) error {
	*j = jsonText(strings.Trim(string(text), `"`))
	return nil
}

// port is the number of a port that a probe gives by number or name.
func (c container) port(given jsonText) string {
	for _, p := range c.Ports {
		if p.Name == given {
			return string(p.ContainerPort)
		}
	}
	return string(given)
}

// memoryBytes is a quantity of memory as the downward API gives it.
func memoryBytes(quantity string) string {
	for suffix, factor := range map[string]int64{"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 1e3, "M": 1e6, "G": 1e9} {
		if number, ok := strings.CutSuffix(quantity, suffix); ok {
			if n, err := strconv.ParseInt(number, 10, 64); err == nil {
				return strconv.FormatInt(n*factor, 10)
			}
		}
	}
	return quantity
}
