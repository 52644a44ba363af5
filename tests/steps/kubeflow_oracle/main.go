// Reads templates, each after its length in four bytes (big-endian), and writes one line for each: the
// JSON that Kubeflow's cache server would take the digest of, or why there is none.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
)

var kept = map[string][]string{
	"container": {"image", "command", "args", "env", "volumeMounts"},
	"inputs":    nil, "outputs": nil, "volumes": nil, "initContainers": nil, "sidecars": nil,
}

func reduced(text []byte) []byte {
	var template map[string]interface{}
	if json.Unmarshal(text, &template) != nil {
		return []byte("refused")
	}
	result := map[string]interface{}{}
	for name, fields := range kept {
		value, present := template[name]
		if present && fields != nil {
			object, ok := value.(map[string]interface{})
			if !ok {
				return []byte("panic")
			}
			part := map[string]interface{}{}
			for _, field := range fields {
				if inner, found := object[field]; found {
					part[field] = inner
				}
			}
			value = part
		}
		if present {
			result[name] = value
		}
	}
	line, err := json.Marshal(result)
	if err != nil {
		return []byte("unwritable")
	}
	return line
}

func main() {
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	defer out.Flush()
	var size uint32
	for binary.Read(in, binary.BigEndian, &size) == nil {
		text := make([]byte, size)
		if _, err := io.ReadFull(in, text); err != nil {
			panic(err)
		}
		out.Write(append(reduced(text), '\n'))
	}
}
