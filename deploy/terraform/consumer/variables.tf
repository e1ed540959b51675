variable "name" {
  description = "Prefix of all names."
  type        = string
  default     = "relay"
}

variable "vpc_id" {
  description = "The VPC of the clients."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets in which the endpoint has an address, one of a zone at most. Each costs by the hour; clients of other zones reach it over the zone's border."
  type        = set(string)

  validation {
    condition     = length(var.subnet_ids) > 0
    error_message = "An endpoint needs a subnet; without one it has no address."
  }
}

variable "service_name" {
  description = "The endpoint service's name: output service_name of module provider, or what the operator of relay told you."
  type        = string

  validation {
    condition     = can(regex("^com\\.amazonaws\\.vpce\\.[a-z0-9-]+\\.vpce-svc-[0-9a-f]{8,32}$", var.service_name))
    error_message = "service_name looks like com.amazonaws.vpce.eu-central-1.vpce-svc-0123456789abcdef0; services of AWS itself, such as com.amazonaws.eu-central-1.sqs, are not relay."
  }
}

variable "service_region" {
  description = "The region of the service, where it is not this VPC's own. Its operator must have listed yours in supported_regions."
  type        = string
  default     = null

  validation {
    condition     = coalesce(var.service_region, data.aws_region.here.region) == try(split(".", var.service_name)[3], null)
    error_message = "The service of service_name is in another region: set service_region to that region (the fourth part of service_name)."
  }
}

variable "ports" {
  description = "Ports of relay's load balancer that clients use: 443, and 4222 where NATS is offered."
  type        = set(number)
  default     = [443]

  validation {
    condition     = length(var.ports) > 0 && alltrue([for port in var.ports : port >= 1 && port <= 65535])
    error_message = "ports are 1 to 65535, one at least."
  }
}

variable "client_security_group_ids" {
  description = "Security groups of the pods or nodes that call relay. The endpoint lets them in, and a rule is added to each that lets it out to the endpoint."
  type        = set(string)
  default     = []
}

variable "client_cidrs" {
  description = "Ranges that the endpoint lets in, for clients without a security group of this VPC: on premises, or in a peered network."
  type        = set(string)
  default     = []

  validation {
    condition     = length(var.client_cidrs) + length(var.client_security_group_ids) > 0
    error_message = "Nobody could reach the endpoint: name the clients' security groups or ranges. The endpoint's group needs inbound rules; outbound ones are of no use to it."
  }

  validation {
    condition     = alltrue([for range in var.client_cidrs : can(cidrhost(range, 0)) && !can(regex("/0$", range))])
    error_message = "client_cidrs are ranges such as 10.0.0.0/16; 0.0.0.0/0 is everybody, and is refused."
  }
}

variable "manage_client_egress" {
  description = "Whether rules are added to the clients' security groups. Switch it off where they let everything out, or where somebody else manages them."
  type        = bool
  default     = true
}

variable "dns_name" {
  description = "The name under which clients know relay, such as relay.internal.example.com; relay's certificate must have it. It gets a private zone and an alias to the endpoint. Null makes none."
  type        = string
  default     = null
}

variable "zone_id" {
  description = "A private zone that exists already and takes the alias, instead of one of its own. dns_name must be in it."
  type        = string
  default     = null

  validation {
    condition     = var.zone_id == null || var.dns_name != null
    error_message = "zone_id is the zone for dns_name, which is not set."
  }
}

variable "private_dns" {
  description = "Whether the endpoint answers to the service's own private_dns_name. Only after the endpoint was accepted, and only in a VPC with DNS hostnames and DNS support on. Needs no dns_name."
  type        = bool
  default     = false

  validation {
    condition     = !(var.private_dns && var.dns_name != null)
    error_message = "private_dns and dns_name are two ways to one end: choose one."
  }
}

variable "tags" {
  description = "Tags of everything that has tags."
  type        = map(string)
  default     = {}
}
