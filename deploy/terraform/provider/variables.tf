variable "name" {
  description = "Name of the load balancer, and prefix of all other names. Changing it replaces everything, with new endpoint names for all clients."
  type        = string
  default     = "relay"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name has 3 to 20 characters of a-z, 0-9 and -, and begins with a letter: target groups append to it, and AWS allows 32."
  }
}

variable "vpc_id" {
  description = "The VPC of the cluster in which relay runs."
  type        = string
}

variable "nlb_arn" {
  description = "An internal network load balancer that somebody else owns, such as the AWS Load Balancer Controller. This module then makes the endpoint service and nothing of the load balancer: no listener, target group, security group or alarm. Null makes one."
  type        = string
  default     = null

  validation {
    condition     = var.nlb_arn == null || can(regex(":loadbalancer/net/", var.nlb_arn))
    error_message = "nlb_arn is the ARN of a network load balancer (…:loadbalancer/net/…): an endpoint service takes no other kind."
  }

  validation {
    condition     = (var.nlb_arn == null) != (length(var.subnets) == 0)
    error_message = "Give either subnets, and this module makes the load balancer, or nlb_arn of one that exists."
  }
}

variable "subnets" {
  description = "One subnet for each zone that has workers, by any key that stays (such as the zone's id, euc1-az1): its id, and the free address in it that the load balancer takes and keeps. A client's endpoint works in these zones only."
  type = map(object({
    subnet_id = string
    address   = string
  }))
  default = {}

  validation {
    condition     = alltrue([for subnet in var.subnets : can(regex("^subnet-[0-9a-f]{8,17}$", subnet.subnet_id))])
    error_message = "Each subnet_id is that of a subnet, such as subnet-0123456789abcdef0."
  }

  validation {
    condition     = alltrue([for subnet in var.subnets : can(cidrhost("${subnet.address}/32", 0))])
    error_message = "Each address is one IPv4 address, such as 10.0.1.7: a range as a trusted peer would let every host in it say that it is any client's endpoint."
  }

  validation {
    condition     = length(distinct([for subnet in var.subnets : subnet.subnet_id])) == length(var.subnets)
    error_message = "A subnet is there twice: a network load balancer takes one subnet of each zone."
  }
}

variable "listeners" {
  description = "Listeners by name, which ends the target group's name. port: of the load balancer. target_port: of relay's pods. proxy_protocol: whether relay expects a PROXY header there (`listen.proxy = \"required\"`). server_speaks_first: true for protocols like NATS, where a header would wait for the client's first bytes and the client for the server's."
  type = map(object({
    port                = number
    target_port         = number
    proxy_protocol      = optional(bool, true)
    server_speaks_first = optional(bool, false)
  }))
  default = {
    data = { port = 443, target_port = 7410 }
  }

  validation {
    condition     = length(var.listeners) > 0
    error_message = "A load balancer without a listener serves nobody: give at least one, such as data = { port = 443, target_port = 7410 }."
  }

  validation {
    condition     = alltrue([for name, _ in var.listeners : can(regex("^[a-z][a-z0-9]{0,10}$", name))])
    error_message = "The name of a listener has 1 to 11 characters of a-z and 0-9."
  }

  validation {
    condition     = alltrue([for listener in var.listeners : listener.port >= 1 && listener.port <= 65535 && listener.target_port >= 1 && listener.target_port <= 65535])
    error_message = "Ports are 1 to 65535."
  }

  validation {
    condition     = length(distinct([for listener in var.listeners : listener.port])) == length(var.listeners)
    error_message = "Two listeners have the same port."
  }

  validation {
    condition     = alltrue([for listener in var.listeners : !(listener.proxy_protocol && (listener.server_speaks_first || contains([4222], listener.target_port)))])
    error_message = "A listener to NATS has no PROXY header: the server speaks first there, the header waits for the client's first bytes, and both wait for ever. Set proxy_protocol = false."
  }
}

variable "health_check" {
  description = "Where the load balancer asks which pods work: relay's health listener, which fails as soon as a pod begins to drain. AWS sends a PROXY header with the checks of a target group that has one, whichever port they go to: relay needs `health_proxy = \"accept\"` in [admin]. Null: it connects to the port of each listener instead, which succeeds until the end of a drain. Listeners to other servers (server_speaks_first) are always checked so."
  type = object({
    port = optional(number, 7413)
    path = optional(string, "/readyz")
  })
  default = {}

  validation {
    condition     = try(var.health_check.port >= 1 && var.health_check.port <= 65535, var.health_check == null)
    error_message = "health_check.port is 1 to 65535."
  }

  validation {
    condition     = try(startswith(var.health_check.path, "/"), var.health_check == null)
    error_message = "health_check.path begins with a slash, such as /readyz."
  }
}

variable "drain_delay_seconds" {
  description = "The drain_delay of relay: how long it continues to serve after SIGTERM. New connections keep coming for 120 s and more after a target was deregistered."
  type        = number
  default     = 180

  validation {
    condition     = var.drain_delay_seconds >= 120 && var.drain_delay_seconds <= 3600
    error_message = "drain_delay_seconds is 120 to 3600: a network load balancer sends new connections to a target for about 120 s after it was deregistered."
  }
}

variable "deregistration_seconds" {
  description = "How long connections to a target that leaves, or is unhealthy, may go on. At least drain_delay_seconds, or the load balancer cuts what relay still answers."
  type        = number
  default     = 240

  validation {
    condition     = var.deregistration_seconds >= var.drain_delay_seconds && var.deregistration_seconds <= 3600
    error_message = "deregistration_seconds is at least drain_delay_seconds, and at most 3600: with less, the load balancer cuts connections that relay still serves."
  }
}

variable "cross_zone" {
  description = "Whether each zone's address reaches the pods of all zones. It costs traffic between zones; without it a zone without a healthy pod serves nobody, and the clients' zonal names of it fail."
  type        = bool
  default     = false
}

variable "deletion_protection" {
  description = "Whether the load balancer refuses to be deleted. Switch it off, and apply, before you destroy."
  type        = bool
  default     = true
}

variable "enforce_rules_on_private_link" {
  description = "Whether the load balancer's security group also judges what comes through endpoints, by the client's own address in its own VPC (which another client's VPC may have as well). Off leaves that to principals, acceptance and relay."
  type        = bool
  default     = false

  validation {
    condition     = !var.enforce_rules_on_private_link || length(var.client_cidrs) > 0
    error_message = "enforce_rules_on_private_link without client_cidrs would refuse every client, while health checks stay green: name the clients' ranges, or leave it off."
  }
}

variable "client_cidrs" {
  description = "Ranges that the load balancer's security group lets in: clients in this VPC and in networks that reach it, and, with enforce_rules_on_private_link, the clients' own VPCs."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for range in var.client_cidrs : can(cidrhost(range, 0)) && !can(regex("/0$", range))])
    error_message = "client_cidrs are ranges such as 10.0.0.0/16; 0.0.0.0/0 is everybody, and is refused."
  }
}

variable "target_security_group_id" {
  description = "The security group of the nodes or pods that run relay. Rules are added to it that let in the load balancer's group, on the listeners' target ports and the health check's. Null adds none: let in the group yourself."
  type        = string
  default     = null
}

variable "principals" {
  description = "Who may create an endpoint, as ARNs: arn:aws:iam::111122223333:root is an account, a role's ARN is that role."
  type        = set(string)

  validation {
    condition     = !contains(var.principals, "*")
    error_message = "The principal * is everybody at AWS: with it the load balancer is public although it has no public address. Name accounts or roles."
  }

  validation {
    condition     = alltrue([for principal in var.principals : principal == "*" || can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:(root|role/.+|user/.+)$", principal))])
    error_message = "A principal is the ARN of an account (arn:aws:iam::111122223333:root), a role or a user."
  }
}

variable "acceptance_required" {
  description = "Whether each new endpoint waits until somebody accepts it. Without it, every principal's endpoint works at once."
  type        = bool
  default     = true
}

variable "accepted_endpoints" {
  description = "Ids of clients' endpoints that are accepted, such as vpce-0123456789abcdef0. Taking one out rejects that client's endpoint, and its connections end."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for endpoint in var.accepted_endpoints : can(regex("^vpce-[0-9a-f]{8,32}$", endpoint))])
    error_message = "accepted_endpoints are ids of endpoints, such as vpce-0123456789abcdef0."
  }
}

variable "private_dns_name" {
  description = "A name that clients may switch on for their endpoint, such as relay.example.com. Its domain is proven by a TXT record in public DNS. Null has none: each client then has a private zone of its own (module consumer)."
  type        = string
  default     = null
}

variable "public_zone_id" {
  description = "The public zone in Route 53 in which that TXT record is written. Null writes none: write it where the domain is, as output private_dns_verification says."
  type        = string
  default     = null

  validation {
    condition     = var.public_zone_id == null || var.private_dns_name != null
    error_message = "public_zone_id is for the TXT record of private_dns_name, which is not set."
  }
}

variable "supported_regions" {
  description = "Other regions whose VPCs may create endpoints. Needs two zones at least."
  type        = set(string)
  default     = []
}

variable "connection_topic_arn" {
  description = "SNS topic that is told when endpoints come, are accepted or rejected, and go. Null tells nobody."
  type        = string
  default     = null
}

variable "alarms" {
  description = "Whether CloudWatch alarms are made: a zone without a healthy target, port allocation errors, and flows that the security group blocked."
  type        = bool
  default     = true
}

variable "alarm_topic_arns" {
  description = "SNS topics that the alarms tell."
  type        = set(string)
  default     = []
}

variable "tags" {
  description = "Tags of everything that has tags."
  type        = map(string)
  default     = {}
}
